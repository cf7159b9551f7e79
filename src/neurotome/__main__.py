"""``python -m neurotome`` is the command."""

from neurotome.cli.main import main

raise SystemExit(main())
