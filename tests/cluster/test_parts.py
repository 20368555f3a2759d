"""Keys of the cache, certificates, archives, state and ports of the test cluster."""

import io
import json
import shutil
import socket
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from testcluster import build, oci, paths
from testcluster.native import layout
from testcluster.native.images import outdated
from testcluster.native.layout import Ports, State
from testcluster.pki import Authority
from testcluster.waiting import TimedOutError, until


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> build.Family:
    """The pause program's family, with sources that a test may change."""
    shutil.copytree(paths.TOOLS / "pause", tmp_path / "pause")
    monkeypatch.setattr(paths, "TOOLS", tmp_path)
    return next(f for f in build.FAMILIES if f.name == "pause")


class TestKeys:
    def test_equal_sources_have_equal_keys(self, family: build.Family) -> None:
        assert family.key("go1.26.8") == family.key("go1.26.8")

    @pytest.mark.parametrize("file", ["go.mod", "go.sum", "main.go"])
    def test_a_changed_source_changes_the_key(self, family: build.Family, file: str) -> None:
        before = family.key("go1.26.8")
        with (family.source / file).open("a") as source:
            source.write("// changed\n")
        assert family.key("go1.26.8") != before

    def test_another_compiler_changes_the_key(self, family: build.Family) -> None:
        assert family.key("go1.26.8") != family.key("go1.26.9")

    def test_other_flags_change_the_key(self, family: build.Family) -> None:
        other = build.Family(family.name, family.binaries, ldflags="-X a=b")
        assert other.key("go1.26.8") != family.key("go1.26.8")

    def test_every_family_pins_its_modules_with_checksums(self) -> None:
        for family in build.FAMILIES:
            module = (family.source / "go.mod").read_text()
            assert f"module moorage.dev/tests/cluster/tools/{family.name}\n" in module
            assert (family.source / "go.sum").exists()
            for package in family.binaries.values():
                assert package == "." or package in module

    def test_an_unknown_program_is_named(self) -> None:
        with pytest.raises(KeyError, match="kubelett"):
            list(build.families_with(["kubectl", "kubelett"]))


class TestBuilding:
    @pytest.mark.skipif(shutil.which("go") is None, reason="needs the Go toolchain")
    def test_a_program_is_built_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MOORAGE_CACHE", str(tmp_path))
        first = build.ensure("pause")["pause"]
        stamp = first.stat().st_mtime_ns
        assert first.is_relative_to(tmp_path)
        assert build.ensure("pause")["pause"].stat().st_mtime_ns == stamp

    @pytest.mark.skipif(shutil.which("go") is None, reason="needs the Go toolchain")
    def test_a_failed_build_leaves_nothing_and_says_what_go_said(
        self, family: build.Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MOORAGE_CACHE", str(tmp_path / "cache"))
        (family.source / "main.go").write_text("package main\nfunc main() { undefinedName() }\n")
        with pytest.raises(build.BuildError, match="undefinedName"):
            build.ensure("pause")
        assert [p.name for p in family.folder().iterdir()] == [".pause.lock"]


class TestCertificates:
    def test_a_kubeconfig_names_user_and_groups(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path / "pki")
        path = authority.kubeconfig(
            tmp_path / "alice.kubeconfig", "https://10.0.0.1:6443", "alice", ["admins"]
        )
        assert path.stat().st_mode & 0o077 == 0
        content = yaml.safe_load(path.read_text())
        assert content["clusters"][0]["cluster"]["server"] == "https://10.0.0.1:6443"
        certificate = x509.load_pem_x509_certificate((tmp_path / "pki/client-alice.crt").read_bytes())
        assert certificate.subject.rfc4514_string() == "CN=alice,O=admins"
        certificate.verify_directly_issued_by(
            x509.load_pem_x509_certificate((tmp_path / "pki/ca.crt").read_bytes())
        )

    def test_a_server_answers_under_its_names_and_addresses(self, tmp_path: Path) -> None:
        pair = Authority(tmp_path).issue("server", "server", hosts=["kubernetes", "10.96.0.1"])
        names = x509.load_pem_x509_certificate(
            pair.certificate.read_bytes()
        ).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert names.value.get_values_for_type(x509.DNSName) == ["kubernetes"]
        assert [str(a) for a in names.value.get_values_for_type(x509.IPAddress)] == ["10.96.0.1"]

    def test_private_keys_are_private(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        for pair in (authority.pair, authority.service_account_keys()):
            assert pair.key.stat().st_mode & 0o077 == 0


class TestArchives:
    def _index(self, archive: Path) -> dict[str, Any]:
        with tarfile.open(archive) as opened:
            content = opened.extractfile("index.json")
            assert content is not None
            result: dict[str, Any] = json.load(content)
            return result

    def test_an_archive_names_its_image(self, tmp_path: Path) -> None:
        program = tmp_path / "pause"
        program.write_bytes(b"\x7fELF")
        oci.write_archive(program, "localhost/x/pause:1", "amd64", tmp_path / "image.tar")
        assert oci.image_name(tmp_path / "image.tar") == "localhost/x/pause:1"

    def test_an_archive_depends_on_its_input_alone(self, tmp_path: Path) -> None:
        program = tmp_path / "pause"
        program.write_bytes(b"\x7fELF")
        for name in ("a.tar", "b.tar"):
            oci.write_archive(program, "localhost/x/pause:1", "amd64", tmp_path / name)
        assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()

    def test_what_the_node_has_is_left_out(self, tmp_path: Path) -> None:
        program = tmp_path / "pause"
        program.write_bytes(b"\x7fELF")
        oci.write_archive(program, "localhost/x/pause:1", "amd64", tmp_path / "whole.tar")
        with tarfile.open(tmp_path / "whole.tar") as whole:
            whole.extractall(tmp_path / "layout", filter="data")
        index = json.loads((tmp_path / "layout/index.json").read_text())
        index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = "localhost/x/pause:1"
        (tmp_path / "layout/index.json").write_text(json.dumps(index))
        manifest = json.loads(
            (tmp_path / "layout/blobs" / index["manifests"][0]["digest"].replace(":", "/")).read_text()
        )
        present = manifest["layers"][0]["digest"]
        oci.pack(tmp_path / "layout", "localhost/x/pause:1", tmp_path / "part.tar", without={present})
        with tarfile.open(tmp_path / "part.tar") as part:
            names = set(part.getnames())
        assert f"blobs/{present.replace(':', '/')}" not in names
        assert f"blobs/{manifest['config']['digest'].replace(':', '/')}" in names
        assert oci.image_name(tmp_path / "part.tar") == "localhost/x/pause:1"

    def test_an_archive_without_a_name_is_refused(self, tmp_path: Path) -> None:
        content = json.dumps({"manifests": [{"digest": "sha256:0"}]}).encode()
        with tarfile.open(tmp_path / "nameless.tar", "w") as archive:
            entry = tarfile.TarInfo("index.json")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        with pytest.raises(ValueError, match="does not name its image"):
            oci.image_name(tmp_path / "nameless.tar")


class TestImageCache:
    def test_old_nameless_builds_beyond_the_newest_are_forgotten(self) -> None:
        day = 86_400
        images = [{"id": f"i{n}", "created": 10 * day - n * 60} for n in range(25)]
        assert outdated(images, now=10 * day + day) == ["i20", "i21", "i22", "i23", "i24"]

    def test_builds_of_the_last_hours_are_kept_whatever_their_number(self) -> None:
        images = [{"id": f"i{n}", "created": 1000} for n in range(500)]
        assert outdated(images, now=2000) == []

    def test_a_few_old_builds_are_kept_as_cache(self) -> None:
        assert outdated([{"id": "old", "created": 0}], now=1e9) == []


class TestState:
    def test_it_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        state = State("id", True, Ports(*range(1, 18)), "secret", sysctls={"net/ipv4/ip_forward": "0"})
        state.write(tmp_path)
        assert State.read(tmp_path) == state
        assert (tmp_path / "state.json").stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"id": "x", "ports": {}}', "\x00"])
    def test_a_damaged_file_means_no_state(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "state.json").write_text(content)
        assert State.read(tmp_path) is None

    def test_its_password_is_in_no_representation(self) -> None:
        state = State("id", True, Ports(*range(1, 18)), "secret")
        assert "secret" not in repr(state)


class TestPorts:
    def test_a_taken_port_is_passed_over(self) -> None:
        port = layout.free_port(20000)
        with socket.create_server(("127.0.0.1", port)):
            assert layout.free_port(port) > port

    def test_no_two_parts_share_a_port(self) -> None:
        ports = Ports.choose()
        values = list(vars(ports).values())
        assert len(set(values)) == len(values)
        assert max(values) < 32768
        assert ports.edge != 8080

    def test_a_run_directory_too_long_for_sockets_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MOORAGE_TEST_RUN_DIR", "/" + "x" * 80)
        with pytest.raises(ValueError, match="60 characters at most"):
            layout.run_dir()


class TestWaiting:
    def test_a_probe_may_fail_before_it_succeeds(self) -> None:
        answers: list[Any] = [OSError("refused"), None, "here"]

        def probe() -> str | None:
            answer = answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return str(answer) if answer else None

        assert until("it answers", probe, 5, interval=0) == "here"

    def test_the_last_error_is_told(self) -> None:
        def probe() -> bool:
            raise OSError("connection refused")

        with pytest.raises(
            TimedOutError, match=r"it answers: not within 0 s; last error: connection refused\nlog"
        ):
            until("it answers", probe, 0, explain=lambda: "log")
