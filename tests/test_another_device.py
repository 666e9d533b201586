"""What runs on a GPU, on a stand-in where there is none; in a process of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
@pytest.mark.skipif(
    not (torch.cuda.is_available() or (sys.platform == "linux" and shutil.which("g++"))),
    reason="needs a GPU, or Linux and a C++ compiler",
)
def test_on_another_device_as_on_the_cpu():
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", here / "on_another_device.py"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=here.parent, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
