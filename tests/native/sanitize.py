"""Run the tests of native code with AddressSanitizer and UndefinedBehaviorSanitizer: `make test-sanitizers`.

The extension is built a second time, in a folder beside a copy of the package, so that the installed one stays as it
is. Each process of a test writes its reports into another folder, so that none is overlooked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
MARKER = "pytest.mark.native"
# Servers would run several times longer; an allocator that keeps what is freed leaves nothing to measure, and gcc's
# waits for good in a forked child for a lock of its own that another thread of the parent had.
EXCLUDED = [
    "-m",
    "not (service or thorough or backend or heavy)",
    "-k",
    "not nothing_leaks and not forked_child_has_a_thread",
]
# -fno-wrapv: Python is compiled with -fwrapv, with which a signed overflow is not reported. Undefined behaviour raises
# SIGILL, which AddressSanitizer reports with its place: gcc's own reports of it go to the standard error alone.
CFLAGS = "-fsanitize=address,undefined -fsanitize-undefined-trap-on-error -fno-wrapv -fno-omit-frame-pointer -g -O1"

SIGNALS = "handle_segv=2:handle_sigill=2:handle_abort=2"  # 2: though pytest's faulthandler wants them


def main() -> int:
    """Build, run the tests, print the reports; return the exit status."""
    library = find_library()
    if library is None:
        sys.stderr.write(
            "not tested: the sanitizers need gcc and its libasan (build-essential on Debian); CC names a gcc\n"
        )
        return 1 if os.environ.get("CI") else 0
    with tempfile.TemporaryDirectory(prefix="stagetrace-sanitized-") as folder:
        site, reports = Path(folder, "site"), Path(folder, "reports")
        reports.mkdir()
        build(site)
        status = run_tests(library, site, reports)
        found = sorted(reports.iterdir())
        for report in found:
            sys.stderr.write(report.read_text(errors="replace"))
    if found:
        sys.stderr.write(f"\nfailed: {len(found)} processes were stopped by a sanitizer, see above\n")
    return 1 if found else status


def compiler() -> list[str]:
    """Return the compiler that `setup.py` uses."""
    return (os.environ.get("CC") or str(sysconfig.get_config_var("CC") or "gcc")).split()


def find_library() -> Path | None:
    """Return the library of AddressSanitizer that has to be loaded before all others, or None."""
    argv = [*compiler(), "-print-file-name=libasan.so"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    path = Path(done.stdout.strip())
    return path.resolve() if path.is_absolute() and path.exists() else None


def build(site: Path) -> None:
    """Copy the package to `site`, and compile its extension there."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "src" / "stagetrace", site / "stagetrace", ignore=ignored)
    env = {**os.environ, "CFLAGS": f"{os.environ.get('CFLAGS', '')} {CFLAGS}"}
    argv = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(site)]
    subprocess.run(argv, env=env, cwd=ROOT, check=True)


def run_tests(library: Path, site: Path, reports: Path) -> int:
    """Run pytest with the sanitized extension; return its exit status."""
    log = f"log_path={reports / 'report'}"
    env = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:{SIGNALS}:{log}",
        "PYTHONMALLOC": "malloc",  # Python's own allocator hides from the sanitizer what it frees
        "PYTHONPATH": os.pathsep.join([str(site), str(TESTS)]),
        "STAGETRACE_TEST_SANITIZED": str(site),
    }
    argv = [sys.executable, str(TESTS / "run_again.py"), sys.executable, "-m", "pytest", "-q", "-p", "native.loaded"]
    return subprocess.run([*argv, *EXCLUDED, "--", *selected()], env=env, cwd=ROOT, check=False).returncode


def selected() -> list[str]:
    """Return the files of tests of native code."""
    return sorted(str(path) for path in TESTS.glob("*/test_*.py") if MARKER in path.read_text())


if __name__ == "__main__":
    sys.exit(main())
