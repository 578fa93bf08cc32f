package sandbox

import (
	"fmt"
	"maps"
	"net/http"
	"strconv"
)

// answer is what will be sent. Faults of content change the tree, faults of form the bytes, faults of the wire the way.
type answer struct {
	status int
	header http.Header
	tree   *object // nil once it was rendered, or when the body is no JSON of ours
	body   []byte
	code   int // error_code inside, for the receipt
	reason string
}

func jsonAnswer(status int, tree *object) answer {
	return answer{status: status, header: http.Header{"Content-Type": {"application/json"}}, tree: tree}
}

// errorAnswer is the one shape of every error. Details are null in all cases known.
func errorAnswer(status, code int, message string) answer {
	a := jsonAnswer(status, fields("error_code", code, "error_message", message, "details", nil))
	a.code, a.reason = code, message
	return a
}

// htmlAnswer is what servers in front of Oz, and frameworks under it, say.
func htmlAnswer(status int, title string) answer {
	page := fmt.Sprintf("<html>\r\n<head><title>%[1]s</title></head>\r\n<body>\r\n<center><h1>%[1]s</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n", title)
	return answer{status: status, header: http.Header{"Content-Type": {"text/html"}}, body: []byte(page)}
}

// tooLargeAnswer is what a web server in front says.
func tooLargeAnswer() answer {
	return htmlAnswer(http.StatusRequestEntityTooLarge, "413 Request Entity Too Large")
}

// refusalAnswer is a refused capsule.
func refusalAnswer(why *refusal, o Options) answer {
	message := textInvalid
	if o.LegacyMessages {
		message = why.legacy
	}
	a := errorAnswer(http.StatusBadRequest, why.code, message)
	a.reason = why.reason
	return a
}

// render turns the tree into bytes.
func (a *answer) render() {
	if a.tree != nil {
		a.body, a.tree = appendJSON(nil, a.tree), nil
	}
}

// send is the ordinary way: status, headers, length, body.
func (x *exchange) send(a answer) {
	a.render()
	x.giveSlot()
	x.begin(a)
	if bodyAllowed(a.status) {
		x.w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	}
	x.w.WriteHeader(a.status)
	if bodyAllowed(a.status) {
		x.w.Write(a.body) // a client that has left is no error of ours
	}
}

// begin notes the answer in the receipt and copies its headers, for whoever sends it.
func (x *exchange) begin(a answer) {
	maps.Copy(x.w.Header(), a.header)
	x.answered(a)
}

// answered notes the answer in the receipt.
func (x *exchange) answered(a answer) {
	x.reason = a.reason
	x.s.book.update(func(*Stats) {
		x.noteBody() // now: who has the answer may look at the receipt before the handler has returned
		x.rec.Status, x.rec.Code, x.rec.AnswerSize = a.status, a.code, len(a.body)
	})
}

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}
