"""What is installed is what was locked (LiteLLM 1.82.7)."""

import re
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parent.parent.parent / "requirements"
LOCKS = sorted(REQUIREMENTS.glob("*.lock"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_package_has_a_version_and_hashes(lock: Path) -> None:
    """Each line of a lock names one version, with the hashes of its files, and no address to fetch from."""
    text = re.sub(r"\\\n\s*", " ", lock.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    packages = [line for line in lines if not line.startswith("--")]
    assert len(packages) > 20
    for line in packages:
        assert re.match(r"[A-Za-z0-9._\[\],-]+==[^ ]+( ; [^#]*?)? +--hash=sha256:[0-9a-f]{64}", line), line
        assert "git+" not in line
        assert " @ " not in line
