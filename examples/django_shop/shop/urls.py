"""Which view answers what."""

from django.urls import path

from shop.views import sign_up, welcomed

urlpatterns = [path("accounts", sign_up), path("accounts/<int:account_id>", welcomed)]
