"""The doit front door: `./doit build:thor`, or `doit build:thor` in the project's environment."""

from pathlib import Path

from stages.tasks import front

DOIT_CONFIG, task_stagecraft = front(Path(__file__).resolve().parent)
