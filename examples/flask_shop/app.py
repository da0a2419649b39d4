"""Requests: an account and its welcome e-mail are committed together."""

from flask import Flask, Response, jsonify, request
from tasks import storage, transaction

from planton.hosting import call_blocking

app = Flask(__name__)


@app.post("/accounts")
def sign_up() -> Response:
    with transaction() as connection:
        insert = "INSERT INTO account (email) VALUES (?) RETURNING id"
        (account_id,) = connection.execute(insert, [request.args["email"]]).fetchone()
        call_blocking(storage.enqueue, "welcome", str(account_id), connection=connection)
    return jsonify(account_id)


@app.get("/accounts/<int:account_id>")
def welcomed(account_id: int) -> Response:
    """Return how many e-mails an account was sent."""
    with transaction() as connection:
        select = "SELECT welcomed FROM account WHERE id = ?"
        (count,) = connection.execute(select, [account_id]).fetchone()
    return jsonify(count)
