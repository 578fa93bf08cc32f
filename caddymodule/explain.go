package caddymodule

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

func explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain <answer.json>",
		Short: "Explains a saved answer of Oz: the decision, what would be cut, what the app would get",
		Long: `
Reads an answer of Oz from a file, or from standard input if the file is -, and
says what oz_instant would decide by it and why, what it would cut out, and what
the app would get. With --config as every oz_instant block of a configuration
would do it; what these require of a user's request is left out.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().Int("status", http.StatusCreated, "the HTTP status that the answer had")
	addConfigFlags(cmd)
	cmd.RunE = run(runExplain)
	return cmd
}

func runExplain(cmd *cobra.Command, args []string) error {
	status, _ := cmd.Flags().GetInt("status")
	handlers, err := explainers(cmd)
	if err != nil {
		return err
	}
	for i, h := range handlers {
		in, err := openAnswer(cmd, args[0])
		if err != nil {
			return err
		}
		if i > 0 {
			fmt.Fprintln(cmd.OutOrStdout())
		}
		err = h.explain(cmd.OutOrStdout(), status, in)
		in.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// explainers are the blocks of a configuration, or one with all defaults.
func explainers(cmd *cobra.Command) ([]*Handler, error) {
	if config, _ := cmd.Flags().GetString("config"); config != "" {
		return blocks(cmd)
	}
	h := new(Handler)
	h.setDefaults()
	return []*Handler{h}, h.compile()
}

func openAnswer(cmd *cobra.Command, name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(cmd.InOrStdin()), nil
	}
	return os.Open(name)
}

// explain does with a saved answer what an exchange does with a fresh one.
func (h *Handler) explain(out io.Writer, status int, in io.Reader) error {
	res := &http.Response{StatusCode: status, Body: io.NopCloser(in), Header: make(http.Header)}
	reader := answerReader{max: h.MaxAnswer, keep: h.BestShot == bestShotKeep, collect: h.collectsShots()}
	a, err := reader.read(res)
	o := outcome{answer: a, verdict: oz.ReasonVerdict(oz.MalformedAnswer)}
	if err == nil {
		o.verdict = h.policy.Judge(a.status, a.doc, nil)
	}
	if o.verdict.Folder != nil {
		o.folder, o.shots = a.doc, a.shots
	}
	if h.Biometry != nil && o.verdict.Decision == oz.Success && firstOfQuality(o) == nil {
		o.match = &match{verdict: oz.ReasonVerdict(oz.BestShotMissing)}
		o = o.combine()
	}
	fmt.Fprintf(out, "decision   %s\n", o.verdict.Decision)
	if o.verdict.Reason != "" {
		fmt.Fprintf(out, "reason     %s\n", o.verdict.Reason)
	}
	if err != nil {
		fmt.Fprintf(out, "because    %v\n", err)
	}
	fmt.Fprintf(out, "read       %s\n", humanize.IBytes(uint64(a.bytes)))
	fmt.Fprintf(out, "cut        %s\n", humanize.IBytes(uint64(a.cut)))
	for _, req := range h.Require {
		fmt.Fprintf(out, "not looked at: require %s %s\n", req.Path, req.Value)
	}
	if h.Biometry != nil && o.verdict.Decision == oz.Success {
		fmt.Fprintln(out, "not looked at: face matching, which comes next and may end otherwise")
	}
	return h.explainEnd(out, o)
}

// explainEnd shows what the app would get, or the client.
func (h *Handler) explainEnd(out io.Writer, o outcome) error {
	if !reachesApp(o.verdict.Decision) && !slices.Contains(h.Pass, string(o.verdict.Decision)) && !h.hasRoutesFor(string(o.verdict.Decision)) {
		p := verdictProblem(o)
		fmt.Fprintf(out, "the client would get %d:\n\n%s\n", p.Status, p.document())
		return nil
	}
	d, err := h.deliver(o)
	if err != nil {
		return err
	}
	p := new(passage)
	p.settle(o)
	req := handedOn(&http.Request{Header: make(http.Header)}, p, d)
	fmt.Fprint(out, "the app would get:\n\n")
	for _, name := range slices.Sorted(maps.Keys(req.Header)) {
		fmt.Fprintf(out, "%s: %s\n", name, req.Header.Get(name))
	}
	body := string(d.body)
	if strings.HasPrefix(d.mediaType, "multipart/") {
		folder, err := h.folders(o)
		if err != nil {
			return err
		}
		body = fmt.Sprintf("(part folder) %s\n(%d parts best_shot)", folder, len(o.shots)-unusable(o.shots))
	}
	fmt.Fprintf(out, "\n%s\n", body)
	return nil
}
