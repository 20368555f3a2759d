"""The database port: units of work over PostgreSQL, migrations, and an embedded server for laptops and
tests.
"""
