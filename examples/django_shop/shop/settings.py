"""No more than this program needs."""

import os

from psycopg.conninfo import conninfo_to_dict

DATABASE_URL = os.environ["DATABASE_URL"]  # such as postgresql://user@host:5432/app
SECONDS = float(os.environ.get("SECONDS", "0.01"))  # that an e-mail takes

_server = conninfo_to_dict(DATABASE_URL)
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _server["dbname"],
        **{name.upper(): _server.get(name) for name in ("user", "password", "host", "port")},
    }
}
SECRET_KEY = os.environ.get("SECRET_KEY", "for trying it out only")
ALLOWED_HOSTS = ["localhost"]
INSTALLED_APPS = ["shop"]
ROOT_URLCONF = "shop.urls"
USE_TZ = True
