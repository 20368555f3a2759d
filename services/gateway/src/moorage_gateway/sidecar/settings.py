"""What the sidecar is told by its environment."""

from pydantic import Field

from moorage.config import Config
from moorage.config.settings import Port
from moorage.config.values import Duration


class UpstreamSettings(Config):
    """The app behind the sidecar (variables ``UPSTREAM_…``)."""

    host: str = Field("127.0.0.1", description="Where the app listens; it shares the pod's loopback.")
    port: Port = Field(8081, description="Port on which the app listens; the app gets it as PORT.")
    health_path: str | None = Field(
        None, pattern=r"^/[!-~]*$", description="Asked for the app's liveness; None: a connection is enough."
    )
    ready_path: str | None = Field(
        None, pattern=r"^/[!-~]*$", description="Asked for the app's readiness; None: a connection is enough."
    )
    startup_path: str | None = Field(
        None, pattern=r"^/[!-~]*$", description="Asked while the app starts; None: that for its liveness."
    )
    probe_timeout: Duration = Field(1.0, description="Longest wait for the app's answer to a probe.")
