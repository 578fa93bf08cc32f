"""An app on Flask that acts on each decision, and believes nothing but the seal. It needs verify.py, too: copy it, and
pip install flask pyjwt[crypto].

    OZ_JWKS=https://app.example.com/.well-known/oz-instant/jwks.json OZ_AUDIENCE=https://app.example.com gunicorn app:app
"""

import os

import jwt
from flask import Flask, request
from verify import Verifier

app = Flask(__name__)
seals = Verifier(os.environ["OZ_JWKS"], os.environ["OZ_AUDIENCE"])
answers = {
    "SUCCESS": (200, "welcome"),
    "DECLINED": (403, "declined"),
    "OPERATOR_REQUIRED": (202, "wait until a person has looked at it"),
    "FAILED": (503, "could not be checked: capture anew, later"),
    "INVALID": (400, "does not count: capture anew"),
    "UNAVAILABLE": (503, "not decided: capture anew, later"),
}


@app.post("/verify")
def verify():
    try:
        claims = seals.verify(request.headers.get("X-Oz-Seal", ""), request.get_data())
    except jwt.PyJWTError:
        claims = {}
    user = signed_in_user()
    own = user and claims.get("sub") == user
    status, message = answers.get(claims.get("decision") if own else None, (403, "not verified"))
    return {"message": message, "reason": claims.get("reason")}, status


def signed_in_user():
    return request.cookies.get("user")  # instead of your own sign-in: never believe a plain cookie
