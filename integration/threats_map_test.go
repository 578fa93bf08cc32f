package integration_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// threats are the ways in which software of this kind has been got round, and the tests that look for each here.
var threats = []struct {
	number int
	what   string
	tests  []string
}{
	{1, "a client's header stays where the answer has none", []string{"TestReservedOnEveryOutcome", "TestReservedInEveryLayout"}},
	{2, "another case, or an underscore, is the same variable to the app", []string{"TestReservedForgeriesArrive", "TestReservedOnEveryOutcome"}},
	{3, "so is a dot, or any other separator", []string{"TestReservedOnEveryOutcome", "TestReservedNamesAtRandom"}},
	{4, "the client names a trusted header in Connection, and the proxy deletes it", []string{
		"TestReservedInConnection", "TestReservedConnectionOfOthers", "TestReservedConnectionOverH2", "TestReservedConnectionAtRandom",
	}},
	{5, "of several lines only the first is looked at", []string{"TestReservedOnEveryOutcome", "TestRequestMediaType", "TestRequestContentEncoding"}},
	{6, "a trailer becomes a header, or one of the next request", []string{"TestReservedInTrailers", "TestReservedInEveryLayout", "TestRequestPipeline"}},
	{7, "bytes in a header make the question fail, and failing lets in", []string{"TestThreatFieldValues"}},
	{8, "a word of the answer becomes a header with a line end in it", []string{"TestThreatWordsOfOz", "TestThreatErrorsOfOz", "TestDecisionByFolder"}},
	{9, "text that looks like a placeholder is expanded", []string{"TestThreatPlaceholders", "TestThreatPlaceholdersInErrors"}},
	{10, "forwarding and override headers steer what is decided", []string{"TestThreatSteering", "TestHandoffToOz"}},
	{11, "a health check's User-Agent is let through", []string{"TestThreatSteering"}},
	{12, "malformed input is answered 200", []string{"TestThreatRandomRequests", "TestRequestAmbiguousLength", "TestRequestMethods"}},
	{13, "a body without a length is not looked at", []string{
		"TestHandoffCapsule", "TestRequestContentWhereNoneBelongs", "TestRequestEmptyCapsule", "TestRequestLyingLength", "TestRequestForgedFolder",
	}},
	{14, "too large a body passes, or a part of it is analysed", []string{"TestRequestCapsuleTooLarge", "TestRequestLengthBeyondAllReason", "TestRequestLimitOfTheSite"}},
	{15, "what follows CONNECT or an upgrade becomes a request", []string{
		"TestRequestConnect", "TestRequestExtendedConnectOverH2", "TestRequestInRefusedBody",
		"TestUpgradeIsIgnoredOnCapsules", "TestOnlyWebSocketsTravelOn", "TestRequestUpgradeElsewhere",
	}},
	{16, "a body that does not come holds a place for ever", []string{"TestRequestSlowUpload", "TestRequestSilentGet", "TestRequestPauseWhileOzLeaves", "TestLeaveDuringUpload"}},
	{17, "two readers of one document see two decisions", []string{"TestDecisionByMalformedAnswer", "TestDecisionByExactDocument", "TestDecisionByFolder"}},
	{18, "headers of the answer are passed on", []string{"TestThreatHeaderOfOz", "TestDecisionByFolder"}},
	{19, "secrets of the user, or of the gateway, go where they do not belong", []string{"TestHandoffToOz", "TestHandoffSecrets", "TestHandoffTokenFromFile"}},
	{20, "an answer of an odd status is followed or passed on", []string{"TestDecisionByStatus", "TestThreatHeaderOfOz"}},
	{21, "text in the config becomes config", []string{"TestThreatConfigText"}},
	{22, "a client's header, or the environment, names a proxy", []string{"TestThreatProxyOfTheEnvironment", "TestThreatSteering"}},
	{23, "what looks like an answer is posted straight to the path", []string{"TestRequestForgedFolder", "TestRequestMediaType", "TestRequestContentWhereNoneBelongs", "TestReservedWithCurl"}},
	{24, "what described the old body describes the new one", []string{"TestHandoffRequest", "TestHandoffExpectAndTrailer", "TestRequestPipeline"}},
}

// TestThreatsAreCovered keeps the table true: every threat has tests, and they exist.
func TestThreatsAreCovered(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*_test.go")
	check(t, err)
	exists := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		check(t, err)
		for _, match := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(text, -1) {
			exists[string(match[1])] = true
		}
	}
	for i, threat := range threats {
		if threat.number != i+1 || threat.what == "" || len(threat.tests) == 0 {
			t.Errorf("threat %d lacks something: %+v", i+1, threat)
		}
		for _, test := range threat.tests {
			if !exists[test] {
				t.Errorf("threat %d: there is no %s", threat.number, test)
			}
		}
	}
}
