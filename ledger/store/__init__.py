"""SQL storage: models, engines, migrations."""
