package caddymodule

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// folderOf is a folder that ends in the decision.
func folderOf(d oz.Decision) string {
	switch d {
	case oz.Success:
		return success()
	case oz.Failed:
		return testFolder("FAILED", "FAILED", "FAILED", testShot)
	}
	return testFolder("FINISHED", string(d), string(d), testShot)
}

// An answer of Oz that is a decision goes to the app, once, with the folder
// less its best shot; what else came about is refused, and the app is not asked.
func TestDecisionsThatReachTheApp(t *testing.T) {
	for _, d := range []oz.Decision{oz.Success, oz.Declined, oz.OperatorRequired, oz.Failed} {
		app := new(testApp)
		w := newHandler(t, answers(201, folderOf(d)), "").posted(t, app, "capsule")
		if w.Code != 200 || w.Body.String() != "from the app" || app.calls != 1 {
			t.Errorf("%s: %d %s, %d calls", d, w.Code, w.Body, app.calls)
		}
		if got := app.request.Header.Get(headerDecision); got != string(d) {
			t.Errorf("%s: the app was told %q", d, got)
		}
		if strings.Contains(app.body, "image_b64") || !strings.Contains(app.body, "folder-1") {
			t.Errorf("%s: the app got %s", d, app.body)
		}
	}
	for _, test := range []struct {
		status int
		doc    string
		want   int
	}{
		{400, `{"error_code": 14, "error_message": "Invalid request data"}`, 400},
		{201, "nonsense", 502}, {500, "", 502}, {401, "", 502}, {429, "", 503}, {200, "", 502}, {204, "", 502}, {302, success(), 502},
	} {
		w := newHandler(t, answers(test.status, test.doc), "").posted(t, noApp(t), "capsule")
		if w.Code != test.want || w.Header().Get("Content-Type") != problemMediaType {
			t.Errorf("%d %.20q: %d %s", test.status, test.doc, w.Code, w.Body)
		}
	}
}

// What is passed comes to the app as the problem that the client would have had.
func TestPassedDecisions(t *testing.T) {
	app := new(testApp)
	w := newHandler(t, answers(500, ""), `{"pass": ["UNAVAILABLE"]}`).posted(t, app, "capsule")
	if w.Code != 200 || app.calls != 1 || app.request.Header.Get(headerDecision) != "UNAVAILABLE" || app.request.Header.Get("X-Oz-Reason") != "unexpected_status" {
		t.Fatalf("%d, %d calls", w.Code, app.calls)
	}
	if app.request.Header.Get("Content-Type") != problemMediaType || !strings.Contains(app.body, "unexpected_status") {
		t.Errorf("%v %s", app.request.Header, app.body)
	}
	if w := newHandler(t, answers(400, `{"error_code": 14}`), `{"pass": ["UNAVAILABLE"]}`).posted(t, noApp(t), "capsule"); w.Code != 400 {
		t.Errorf("another decision was passed, too: %d", w.Code)
	}
}

// Routes for a decision get the request as the app would; what falls through
// them goes on to the app.
func TestRoutesForDecisions(t *testing.T) {
	const routes = `{"handle_decision": [
		{"decisions": ["DECLINED", "INVALID"], "routes": [{"handle": [
			{"handler": "static_response", "status_code": 418, "body": "{http.oz_instant.decision}"}]}]},
		{"decisions": ["FAILED"], "routes": [{"handle": [{"handler": "headers", "request": {"set": {"X-Route": ["failed"]}}}]}]}]}`
	for _, test := range []struct {
		status int
		doc    string
		want   int
		body   string
	}{
		{201, folderOf(oz.Declined), 418, "DECLINED"},
		{400, `{"error_code": 13}`, 418, "INVALID"},
	} {
		if w := newHandler(t, answers(test.status, test.doc), routes).posted(t, noApp(t), "capsule"); w.Code != test.want || w.Body.String() != test.body {
			t.Errorf("%s: %d %s", test.body, w.Code, w.Body)
		}
	}
	app := new(testApp)
	newHandler(t, answers(201, folderOf(oz.Failed)), routes).posted(t, app, "capsule")
	if app.calls != 1 || app.request.Header.Get("X-Route") != "failed" || app.request.Header.Get(headerDecision) != "FAILED" {
		t.Errorf("%d calls, %v", app.calls, app.request)
	}
	app = new(testApp)
	newHandler(t, answers(201, success()), routes).posted(t, app, "capsule")
	if app.calls != 1 || app.request.Header.Get("X-Route") != "" {
		t.Errorf("SUCCESS: %d calls", app.calls)
	}
}

// What is no capsule goes by, undecided and without reserved names, and Oz does
// not hear of it.
func TestOtherRequestsGoBy(t *testing.T) {
	h := newHandler(t, neverAsked(t), `{"match": [{"path": ["/verify"]}]}`)
	for _, r := range []*http.Request{
		httptest.NewRequest(http.MethodPost, "/elsewhere", strings.NewReader("form=1")),
		httptest.NewRequest(http.MethodGet, "/verify", nil),
		httptest.NewRequest(http.MethodDelete, "/elsewhere", nil),
	} {
		r.Header.Set(headerDecision, "SUCCESS")
		r.Header["X_oz.decision"] = []string{"SUCCESS"}
		w, app := httptest.NewRecorder(), new(testApp)
		if err := h.ServeHTTP(w, fromClient(w, r), app); err != nil {
			t.Fatal(err)
		}
		if app.calls != 1 || app.request.Header.Get(headerDecision) != "" || app.request.Header["X_oz.decision"] != nil {
			t.Errorf("%s %s: %d calls, %v", r.Method, r.URL, app.calls, app.request.Header)
		}
	}
}

// A request with our own decision is not judged again, by whatever other
// oz_instant it meets.
func TestDecidedOnce(t *testing.T) {
	first := newHandler(t, answers(201, success()), "")
	second, err := load[*Handler](newContext(t), handlerID, `{"reverse_proxy": {"upstreams": [{"dial": "nobody.test:1"}]}}`)
	if err != nil {
		t.Fatal(err)
	}
	app := new(testApp)
	w := first.posted(t, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		return second.ServeHTTP(w, r, app)
	}), "capsule")
	if w.Code != 200 || app.calls != 1 || app.request.Header.Get(headerDecision) != "SUCCESS" {
		t.Errorf("%d %s, %d calls", w.Code, w.Body, app.calls)
	}
}

// What is required is taken from the client's own request.
func TestRequirements(t *testing.T) {
	for _, test := range []struct{ value, cookie, want string }{
		{"{http.request.cookie.order}", "order=order-1", "SUCCESS"},
		{"{http.request.cookie.order}", "order=order-2", "INVALID"},
		{"{http.request.cookie.order}", "", "INVALID"},
		{"{http.request.header.X-Oz-Transaction}", "order=order-1", "INVALID"}, // a reserved name: it never arrives
		{"order-1", "", "SUCCESS"},
	} {
		h := newHandler(t, answers(201, success()), `{"pass": ["INVALID"], "require": [{"path": "meta_data.transaction_id", "value": "`+test.value+`"}]}`)
		w, app := httptest.NewRecorder(), new(testApp)
		r := httptest.NewRequest(http.MethodPost, "/verify", strings.NewReader("capsule"))
		r.Header.Set("Content-Type", capsuleMediaType)
		r.Header.Set("Cookie", test.cookie)
		r.Header.Set("X-Oz-Transaction", "order-1")
		if err := h.ServeHTTP(w, fromClient(w, r), app); err != nil {
			t.Fatal(err)
		}
		if app.calls != 1 || app.request.Header.Get(headerDecision) != test.want {
			t.Errorf("%s, %s: %v, want %s", test.value, test.cookie, app.request, test.want)
		}
	}
}

// What goes wrong behind the decision is not the decision's: it goes up as it is.
func TestErrorsOfTheAppGoUp(t *testing.T) {
	w := httptest.NewRecorder()
	err := newHandler(t, answers(201, success()), "").ServeHTTP(w, newCapsuleRequest(w, strings.NewReader("capsule")),
		caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return http.ErrNotSupported }))
	if err != http.ErrNotSupported {
		t.Errorf("%v", err)
	}
}

// A value that is empty in part is easily met by who writes the other side.
func TestHalfEmptyRequirementNeverHolds(t *testing.T) {
	for _, value := range []string{"user:{http.auth.user.id}", "user:{no.such.placeholder}", "{http.request.cookie.none}user:"} {
		h := newHandler(t, answers(201, strings.Replace(success(), `"order-1"`, `"user:"`, 1)),
			`{"require": [{"path": "meta_data.transaction_id", "value": "`+value+`"}]}`)
		if w := h.posted(t, noApp(t), "capsule"); w.Code != 403 {
			t.Errorf("%s: %d %s", value, w.Code, w.Body)
		}
	}
}
