from tests.linear.conftest import quick  # noqa: F401
