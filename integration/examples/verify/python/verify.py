"""Shows how an app in Python verifies seals: copy Verifier, or import it. It needs PyJWT with cryptography (pip install pyjwt[crypto]).

    python3 verify.py <jwks URL> <audience> <folder file, or - for none> [cool-down and life of keys, in seconds] < seals

It reads a seal from each line and prints "ok <decision>" or why not; the exit code is 1 if one doesn't hold.
"""

import hashlib
import json
import math
import pathlib
import sys
import threading
import time
import urllib.request

import jwt


class Verifier:
    """Verifies the seals of one site. Make one, and keep it: it keeps the keys.

    Keys live for max_age seconds, so that one that the site takes back isn't trusted for ever.

    Not by jwt.PyJWKClient: that fetches the keys again for each unknown kid, which anyone can make up.
    """

    def __init__(self, jwks, audience, cool_down=30, max_age=600):
        self.jwks, self.audience, self.cool_down, self.max_age = jwks, audience, cool_down, max_age
        self.lock, self.keys = threading.Lock(), {}
        self.fetched = self.tried = -math.inf  # when the keys came, and when they were asked for, whatever came of it

    def verify(self, seal, folder):
        """Returns the claims of a seal that holds, and raises jwt.PyJWTError otherwise.

        folder is the folder document as the app received it, byte for byte. Without one nothing holds: a genuine seal may come with
        a forged folder.
        """
        claims = self.verify_without_folder(seal)
        if not folder or hashlib.sha256(folder).hexdigest() != claims.get("folder_sha256"):
            raise jwt.InvalidTokenError("the folder is not the one that was sealed")
        return claims

    def verify_without_folder(self, seal):
        """Is for an app that doesn't read the folder, which may be forged."""
        try:
            header = jwt.get_unverified_header(seal)
        except (RecursionError, UnicodeError) as error:  # which PyJWT lets out
            raise jwt.DecodeError("not a compact JWS") from error
        if header.get("typ") != "oz-seal+jwt":
            raise jwt.InvalidTokenError("not a seal: typ is another")
        return jwt.decode(
            seal,
            self.key(header.get("kid")),
            algorithms=["ES256"],  # never what the seal itself names
            audience=self.audience,
            issuer="oz_instant",
            leeway=30,
            options={"require": ["iss", "aud", "exp", "iat", "decision"]},
        )

    def key(self, kid):
        """Returns the key with that kid, and fetches the keys anew if it isn't among them: so the site can take a new one."""
        with self.lock:
            now = time.monotonic()
            if now - self.fetched >= self.max_age:
                self.keys = {}
            if kid not in self.keys and now - self.tried >= self.cool_down:
                self.tried = now
                self.keys, self.fetched = self.fetch(), now
            if kid not in self.keys:
                raise jwt.InvalidTokenError("unknown kid")
            return self.keys[kid]

    def fetch(self):
        try:
            with urllib.request.build_opener(NoRedirect).open(self.jwks, timeout=5) as answer:
                keys = json.loads(answer.read(256 << 10))["keys"]
            return {k["kid"]: jwt.PyJWK(k, "ES256").key for k in keys if k.get("crv") == "P-256" and "kid" in k}
        except Exception as error:  # whatever is wrong with the answer, its seals are refused
            raise jwt.InvalidTokenError("fetching the keys: " + repr(error)) from error


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error: only the site itself may say what its keys are."""

    def redirect_request(self, *_):
        return None


def main():
    jwks, audience, file = sys.argv[1:4]
    verifier = Verifier(jwks, audience, *map(float, sys.argv[4:6]))
    folder = pathlib.Path(file).read_bytes() if file not in ("", "-") else None
    status = 0
    for line in sys.stdin:
        try:
            seal = line.rstrip("\n")
            claims = verifier.verify_without_folder(seal) if file == "-" else verifier.verify(seal, folder)
            print("ok", claims["decision"], flush=True)
        except jwt.PyJWTError as error:
            status = 1
            print("no:", " ".join(str(error).split()), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
