"""A view for Django that acts on each decision, and believes nothing but the seal. It needs verify.py, too: copy it, and
pip install django pyjwt[crypto].

In urls.py: path("verify", views.verify). The page sends Django's CSRF token in the header X-CSRFToken, since the body is the gateway's.
"""

import os

import jwt
from django.http import JsonResponse
from django.views.decorators.http import require_POST
from verify import Verifier

seals = Verifier(os.environ["OZ_JWKS"], os.environ["OZ_AUDIENCE"])
answers = {
    "SUCCESS": (200, "welcome"),
    "DECLINED": (403, "declined"),
    "OPERATOR_REQUIRED": (202, "wait until a person has looked at it"),
    "FAILED": (503, "could not be checked: capture anew, later"),
    "INVALID": (400, "does not count: capture anew"),
    "UNAVAILABLE": (503, "not decided: capture anew, later"),
}


@require_POST
def verify(request):
    try:
        claims = seals.verify(request.headers.get("X-Oz-Seal", ""), request.body)
    except jwt.PyJWTError:
        claims = {}
    user = signed_in_user(request)
    own = user and claims.get("sub") == user
    status, message = answers.get(claims.get("decision") if own else None, (403, "not verified"))
    return JsonResponse({"message": message, "reason": claims.get("reason")}, status=status)


def signed_in_user(request):
    return request.COOKIES.get("user")  # instead of your own sign-in (request.user): never believe a plain cookie
