"""Django: a view queues work within its transaction, `manage.py run_planton` does it.

To install: pip install 'planton[executor,postgres,cli]' django gunicorn
To run: python manage.py migrate
  gunicorn shop.wsgi --bind localhost:8000
  python manage.py run_planton
Then: curl -X POST 'localhost:8000/accounts?email=ann@example.org'; curl localhost:8000/accounts/1
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    execute_from_command_line(sys.argv)
