"""Apps on Flask and Django, in one WSGI server. Each says what it sees of a request: see harness_appservers_test.go."""

import json
import pathlib
import re
import sys

import django
import flask
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import re_path


def folded(name):
    return re.sub(r"[^a-z0-9]", "-", name.lower())


def report(server, fields, decision, body):
    try:
        document = json.loads(body)
    except ValueError as error:
        document, failure = None, str(error)
    else:
        failure = None
    return {
        "server": server,
        "decision": decision,
        "fields": [[folded(name), value] for name, value in fields],
        "document": facts(document),
        "failure": failure,
    }


def facts(document):
    """What an app reads out of the folder, by its own JSON reader."""

    def member(value, name):
        return value.get(name) if isinstance(value, dict) else None

    analyses = member(document, "analyses")
    quality = [member(a, "resolution_status") for a in (analyses if isinstance(analyses, list) else []) if member(a, "type") == "QUALITY"]
    return {
        "system_resolution": member(document, "system_resolution"),
        "resolution_status": member(document, "resolution_status"),
        "folder_id": member(document, "folder_id"),
        "event_session_id": member(member(document, "meta_data"), "event_session_id"),
        "quality": quality[0] if len(quality) == 1 else None,
    }


flask_app = flask.Flask(__name__)


@flask_app.route("/<path:path>", methods=["GET", "POST"])
def flask_view(path):
    request = flask.request
    environ = [(name[len("HTTP_"):], value) for name, value in request.environ.items() if name.startswith("HTTP_")]
    return report("flask", environ + list(request.headers.items()), request.headers.get("X-Oz-Decision"), request.get_data())


def django_view(request):
    meta = [(name[len("HTTP_"):], value) for name, value in request.META.items() if name.startswith("HTTP_")]
    return JsonResponse(report("django", meta + list(request.headers.items()), request.headers.get("X-Oz-Decision"), request.body))


examples = pathlib.Path(__file__).resolve().parent.parent / "examples"
sys.path += [str(examples / folder) for folder in ("verify/python", "apps/flask", "apps/django")]

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="of a test", APPEND_SLASH=False)
django.setup()
urlpatterns = [re_path(".*", django_view)]
django_app = get_wsgi_application()

try:  # the examples, if their libraries are installed
    from app import app as flask_example
    from views import verify as django_example
except ImportError:
    pass
else:
    urlpatterns.insert(0, re_path("^verify$", django_example))


def app(environ, start_response):
    _, first, *rest = environ["PATH_INFO"].split("/")
    if first == "example":
        environ["PATH_INFO"] = "/verify"
        return (django_app if rest == ["django"] else flask_example)(environ, start_response)
    return (django_app if environ["PATH_INFO"].endswith("/django") else flask_app)(environ, start_response)
