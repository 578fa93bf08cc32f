package sandbox

import (
	"crypto/subtle"
	"math"
	"net/http"
	"time"
)

// The auth component: access tokens, who gets one and who needs one.

const accessTokenHeader = "X-Forensic-Access-Token"

// authorize checks the access token, when one is asked for.
func (x *exchange) authorize() *answer {
	if x.o.AccessToken == "" && len(x.o.Accounts) == 0 {
		return nil
	}
	_, refused := x.caller()
	return refused
}

// caller is the account behind the access token, or a refusal. The fixed token belongs to no account.
func (x *exchange) caller() (email string, refused *answer) {
	given := x.r.Header.Get(accessTokenHeader)
	code := codeInvalid
	switch {
	case given == "":
		code = codeNotProvided
	case x.o.AccessToken != "" && subtle.ConstantTimeCompare([]byte(given), []byte(x.o.AccessToken)) == 1:
		return "", nil
	case len(x.o.Accounts) > 0:
		now := x.o.Clock()
		email, code = x.s.sessions.use(x.rec.TokenDigest, now, x.o.slideTo(now))
	}
	if code == 0 {
		return email, nil
	}
	a := accessError(code)
	return "", &a
}

// slideTo is until when a session lasts that is used now, unless it lasts longer anyway.
func (o Options) slideTo(now time.Time) time.Time {
	if o.FixedExpiry {
		return time.Time{}
	}
	return now.Add(o.SessionLife)
}

var accessTexts = map[int]string{
	codeNotProvided: "Access token is not provided",
	codeInvalid:     "Access token is invalid",
	codeExpired:     "Access token has expired",
	codeForbidden:   "Access is forbidden",
}

func accessError(code int) answer {
	status := http.StatusUnauthorized
	if code == codeForbidden {
		status = http.StatusForbidden
	}
	return errorAnswer(status, code, accessTexts[code])
}

// login is POST /api/authorize/auth/.
func (x *exchange) login() answer {
	body, refused := x.readJSON()
	if refused != nil {
		return *refused
	}
	email, refused := textAt(body, "credentials", "email")
	if refused != nil {
		return *refused
	}
	password, refused := textAt(body, "credentials", "password")
	if refused != nil {
		return *refused
	}
	right, known := x.o.Accounts[email]
	if !known || subtle.ConstantTimeCompare([]byte(password), []byte(right)) != 1 {
		return errorAnswer(http.StatusUnauthorized, codeInvalid, "Wrong email or password")
	}
	p := x.s.sessions.open(email, x.o.Clock(), x.o.SessionLife)
	x.granted(p, func(st *Stats) { st.Logins++ })
	return p.answer()
}

// refresh is POST /api/authorize/refresh/. The texts of its refusals are the vendor's, the codes are likely.
func (x *exchange) refresh() answer {
	email, refused := x.caller()
	if refused != nil {
		return *refused
	}
	body, refused := x.readJSON()
	if refused != nil {
		return *refused
	}
	expire, refused := textAt(body, "expire_token")
	if refused != nil {
		return *refused
	}
	p, ok, owned := x.s.sessions.refresh(email, Digest([]byte(expire)), x.o.Clock(), x.o.SessionLife)
	switch {
	case !ok:
		return errorAnswer(http.StatusUnauthorized, codeInvalid, "Session not found")
	case !owned:
		return errorAnswer(http.StatusForbidden, codeForbidden, "You have not access to refresh this session")
	}
	x.granted(p, func(st *Stats) { st.Refreshes++ })
	return p.answer()
}

// granted notes that a token was given out: its digest, and the count.
func (x *exchange) granted(p pair, count func(*Stats)) {
	x.s.book.update(func(st *Stats) {
		x.rec.GrantDigest = Digest([]byte(p.access))
		count(st)
	})
}

// answer is a pair as it is given out. The last two fields are made up: more than the three is documented to come.
func (p pair) answer() answer {
	return jsonAnswer(http.StatusOK, fields(
		"access_token", p.access,
		"expire_token", p.expire,
		"expire_date", math.Floor(float64(p.ends.UnixMilli())/100)/10, // rounded, but never to after the end
		"session_id", newUUID(),
		"user", fields("user_id", newUUID(), "user_type", "CLIENT", "company_id", nil, "is_service", false),
	))
}
