"""Whether a Prefect server is named is found without Prefect, and as Prefect finds it."""

import argparse
from pathlib import Path

import pytest

from compressor.errors import LatentpackError
from flows.commands import prefect_api
from flows.environment import START_S, api_is_configured, set_defaults
from tasks.home import home

URL = "http://127.0.0.1:4999/api"
PROFILES = f"""
active = "mine"
[profiles.mine]
PREFECT_API_URL = "{URL}"
[profiles.none]
"""
API = f'url = "{URL}"\n'


@pytest.mark.parametrize(
    ("files", "environment", "named"),
    [
        ({}, {}, False),
        ({}, {"PREFECT_API_URL": URL}, True),
        ({".env": f"PREFECT_API_URL={URL}\n"}, {}, True),
        ({".env": f"export prefect_api_url='{URL}'  # ours\n"}, {}, True),
        ({".env": "PREFECT_LOGGING_LEVEL=INFO\n"}, {}, False),
        ({"prefect.toml": f"[api]\n{API}"}, {}, True),
        ({"pyproject.toml": f"[tool.prefect.api]\n{API}"}, {}, True),
        ({"home/profiles.toml": PROFILES}, {}, True),
        ({"home/profiles.toml": PROFILES}, {"PREFECT_PROFILE": "none"}, False),
        ({"other.toml": PROFILES}, {"PREFECT_PROFILES_PATH": "other.toml"}, True),
        ({"other.toml": PROFILES, ".env": "PREFECT_PROFILES_PATH=other.toml\n"}, {}, True),
        ({"other.toml": PROFILES, "prefect.toml": 'profiles_path = "other.toml"\n'}, {}, True),
    ],
)
def test_a_server_is_named_where_prefect_would_find_it(
    files: dict[str, str], environment: dict[str, str], named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import Settings

    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert api_is_configured() is named
    assert (Settings().api.url == URL) is named


def test_a_flow_called_from_python_waits_for_its_server_as_a_command_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import Settings

    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "")  # put back as it was
    monkeypatch.delenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS")
    set_defaults()
    assert Settings().server.ephemeral.startup_timeout_seconds == START_S


def test_a_user_without_a_home_is_told_to_set_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    for name in ("LATENTPACK_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setenv("HOME", "~")  # which is what expanding leaves of it
    monkeypatch.chdir(tmp_path)
    assert not api_is_configured()  # and what needs no Prefect goes on
    with pytest.raises(LatentpackError, match="set HOME"):
        home()
    monkeypatch.setenv("LATENTPACK_HOME", "kept")
    with pytest.raises(LatentpackError, match="set HOME"), prefect_api(argparse.Namespace(verbose=False)):
        pass
    assert home() == Path("kept")
