"""Puts jobs, presets and project files into the wheel: an installed package needs no source tree."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithBundle(build_py):
    """Copies the top-level folders that travel with the package."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        bundle = Path(self.build_lib) / "fedmedseg" / "bundle"
        for name in ("jobs", "app_configs", "provisioning"):
            shutil.copytree(ROOT / name, bundle / name, dirs_exist_ok=True)
        # the versions the tests ran with: `fedmedseg preflight` compares a site's with them
        shutil.copy2(ROOT / "constraints.txt", bundle)


setup(cmdclass={"build_py": BuildWithBundle})
