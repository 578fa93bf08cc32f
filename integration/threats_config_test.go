package integration_test

import (
	"strings"
	"testing"
)

// testConfigText promises that text that comes into the config from elsewhere, as through an annotation or a variable, is a
// value or an error, and never a piece of the request to Oz, of another option or of another site.
func testConfigText(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]string{
		"base_path with a new line":     "base_path \"/oz\r\nX-Injected: 1\"",
		"base_path with a query":        "base_path /oz?a=b",
		"base_path with a fragment":     "base_path /oz#x",
		"base_path that goes up":        "base_path /oz/../admin",
		"base_path with a space":        `base_path "/oz HTTP/1.1"`,
		"base_path that is a host":      "base_path //elsewhere.test",
		"base_path without a slash":     "base_path oz",
		"access_token with a new line":  "access_token \"token\nX-Injected: 1\"",
		"access_token that is empty":    "access_token {$EMPTY:\"\"}",
		"access_token with a NUL":       "access_token \"a\x00b\"",
		"access_token of no variable":   "access_token {env.NOT_THERE}",
		"strip with a query":            `strip analyses.#(type=="QUALITY")`,
		"strip with a modifier":         "strip @reverse",
		"strip with a wildcard":         "strip meta_data.*",
		"require with a modifier":       "require @this SUCCESS",
		"require without a value":       `require folder_id ""`,
		"pass with a decision too many": "pass SUCCESS",
		"pass with two in one":          `pass "INVALID UNAVAILABLE"`,
		"analyses with two in one":      `analyses "quality biometry"`,
		"best_shot with a new line":     "best_shot \"strip\n\"",
		"client_gone in capitals":       "client_gone FINISH",
		"max_capsule with two in one":   `max_capsule "32MiB 64MiB"`,
		"timeout below zero":            "timeout -1s",
		"handle_response":               "handle_response {\n\t\t\trespond \"SUCCESS\"\n\t\t}",
		"header of the answer":          "copy_response_headers {\n\t\t\tinclude X-Oz-Decision\n\t\t}",
	} {
		t.Run(name, func(t *testing.T) {
			err := validate(t, "{$SITE} {\n\toz_instant /verify http://127.0.0.1:9 {\n\t\t"+options+"\n\t}\n\trespond ok\n}")
			if err == nil {
				t.Fatal("it was taken")
			}
			option, _, _ := strings.Cut(options, " ")
			if !strings.Contains(err.Error(), option) {
				t.Errorf("the error does not name %s: %v", option, err)
			}
		})
	}
}
