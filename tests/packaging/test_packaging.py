"""The wheel, installed in a new environment next to upstream mindone and used from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.paths import ROOT

TRACKED = ("pyproject.toml", "README.md", "LICENSE", "mindone", "mindone_share4v")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def link_upstream(site: Path) -> None:
    """Put upstream mindone into an environment, as pip would, without our files that are installed in it here."""
    here = Path(sysconfig.get_path("purelib")) / "mindone"
    (site / "mindone" / "models").mkdir(parents=True, exist_ok=True)
    for folder, ours in ((".", "pipelines"), ("models", "share4v")):
        for entry in (here / folder).iterdir():
            link = site / "mindone" / folder / entry.name
            if entry.name not in ("models", ours) and not link.exists():
                link.symlink_to(entry)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from these sources, which takes a minute; or the one that was already, in SHARE4V_TEST_WHEEL."""
    if built := os.environ.get("SHARE4V_TEST_WHEEL"):
        assert find_spec("build"), "README's second command builds with it"
        return Path(built)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a new environment with the wheel; its dependencies come from this environment."""
    home = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--quiet", wheel, cwd=home)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    link_upstream(site)
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python


def test_the_wheel_has_no_files_of_upstream_and_includes_the_tiny_checkpoint(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "mindone/__init__.py" not in names and "mindone/models/__init__.py" not in names
    assert "mindone/models/share4v/assets/sharegpt4v-tiny/model.safetensors" in names
    assert "mindone/models/share4v/py.typed" in names
    embedded = [info for info in zipfile.ZipFile(wheel).infolist() if "/assets/" in info.filename]
    assert sum(info.file_size for info in embedded) < 8e6
    assert not [name for name in names if name.startswith(("tests/", "examples/", "docs/"))]


def test_both_packages_import_from_another_folder(python: Path, tmp_path: Path) -> None:
    code = (
        "import mindone, mindone.models.share4v as ours, mindone.pipelines, mindone.models.lora as theirs; "
        "print(mindone.__file__); print(ours.__file__); print(ours.Share4VConfig.__name__, mindone.__version__)"
    )
    upstream, ours, names = run(python, "-c", code, cwd=tmp_path).split("\n")[:3]
    assert Path(upstream).is_relative_to(python.parents[1]) and Path(ours).is_relative_to(python.parents[1])
    assert names.startswith("Share4VConfig 0.5")


def test_the_installed_command_captions_an_image_from_another_folder(python: Path, tmp_path: Path) -> None:
    scene = ROOT / "examples" / "sharegpt_4v" / "scene.png"
    caption = run(python.with_name("share4v"), "caption", scene, cwd=tmp_path)
    assert caption.strip().endswith(".") and "background" in caption


def test_an_editable_install_imports_from_another_folder(tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in TRACKED:
        if (ROOT / name).is_dir():  # other tests import these modules at the same time: compiled files come and go
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources / name)
    run(python, "-m", "pip", "install", "--no-deps", "--quiet", "-e", sources, cwd=tmp_path)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    link_upstream(site)
    (site / "zz_dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    found = run(python, "-c", "import mindone.models.share4v as ours; print(ours.__file__)", cwd=tmp_path)
    assert Path(found.strip()).is_relative_to(sources)


def build_kernels(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py's build_ext with environment variables; the library is put below `folder`."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder, "--build-temp", folder / "temp"]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_why_the_kernels_were_not_built_is_kept(tmp_path: Path) -> None:
    """`share4v env` and the error about missing kernels quote it."""
    done = build_kernels(tmp_path, CC="no-such-compiler", CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr  # the extension is optional
    reason = (tmp_path / "mindone" / "models" / "share4v" / "kernels" / "build_error.txt").read_text()
    assert "no-such-compiler" in reason


def test_an_instruction_set_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    done = build_kernels(tmp_path, SHARE4V_INSTRUCTION_SETS="portable avx3")
    assert done.returncode == 1
    assert "SHARE4V_INSTRUCTION_SETS names avx3: expected some of" in done.stderr
    assert "portable" in done.stderr and not any(tmp_path.rglob("*.so"))
