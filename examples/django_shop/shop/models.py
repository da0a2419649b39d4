"""The tables of this program."""

from django.db import models


class Account(models.Model):
    """Somebody who is to be welcomed once."""

    id = models.BigAutoField(primary_key=True)
    email = models.EmailField()
    welcomed = models.IntegerField(default=0)
