package integration_test

import (
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// threat is a way in which software of this kind has been got round.
type threat struct {
	number   int
	what     string
	seen     string // where, as far as it was made public
	promises string // those of SECURITY.md that it would break
	tests    []func(*testing.T)
	inApps   string // the part of each of appTests that looks for it, too
}

// appTests are about real app servers, each of which is started once for all of its parts. Tomcat joins them in
// examples_more_test.go.
var appTests = tests(testAppsOnGunicorn, testAppOnPHP, testAppOnPuma, testAppOnNode, testAppInGo)

// takeLong do one thing after the other for many seconds. They are started last, because of parallel tests Go lets the last one begin
// first, and must not be what everybody waits for in the end.
var takeLong = tests(testRandomRequests, testRandomStreams, testLeaveDuringUpload, testRequestMediaType, testReservedInConnection, testFieldValues)

// threats are all that are known of, and the tests that look for each of them here. SECURITY.md lists the same.
var threats = []threat{
	{1, "a client's header stays where the answer has none", "Caddy CVE-2026-30851, GHSA-7r4p-vjf4-gxv4", "1",
		tests(testNamesOnEveryOutcome, testNamesInEveryLayout, testReservedThroughHandlersInFront), ""},
	{2, "another case, or an underscore, is the same variable to the app",
		"Caddy GHSA-f59h-q822-g45g; Traefik CVE-2026-33433, CVE-2026-54763; oauth2-proxy CVE-2025-64484; Puma GHSA-9hf4-67fc-4vf4", "1",
		tests(testReservedForgeriesArrive, testSpellingsOnEveryOutcome, testSpellingsInEveryLayout), "names"},
	{3, "so is a dot, or any other separator", "Traefik CVE-2026-88011, CVE-2026-88879; FrankenPHP CVE-2026-128023, GHSA-49wc-4hcv-v58q", "1",
		tests(testReservedForgeriesArrive, testSpellingsOnEveryOutcome, testSpellingsInEveryLayout, testReservedNamesAtRandom), "names"},
	{4, "the client names a trusted header in Connection, and the proxy deletes it",
		"Traefik CVE-2021-32813, CVE-2024-45410, CVE-2026-29054; Go CVE-2021-33197", "4",
		tests(testReservedInConnection, testReservedConnectionOfOthers, testReservedConnectionOfStreams, testReservedConnectionAtRandom, testConnectionInEveryLayout), "connection"},
	{5, "of several lines only the first is looked at", "Envoy CVE-2020-25017", "1, 3",
		tests(testNamesOnEveryOutcome, testRequestMediaType, testRequestContentEncoding), ""},
	{6, "a trailer becomes a header, or one of the next request",
		"lighttpd CVE-2025-12642; libevent CVE-2026-63379; blaze GHSA-46q4-43ph-c6fr; ewe GHSA-9w88-79f8-m3vp; cpp-httplib CVE-2025-53628; Jetty CVE-2026-10051", "1, 4",
		tests(testReservedInTrailers, testReservedTrailersArrive, testTrailersInEveryLayout, testNoTrailersForErrorRoutes, testRequestPipeline), ""},
	{7, "bytes in a header make the question fail, and failing lets in", "Envoy CVE-2023-27488", "2",
		tests(testFieldValues), ""},
	{8, "a word of the answer becomes a header with a line end in it", "Envoy CVE-2023-27493; Heimdall CVE-2026-57209", "9",
		tests(testWordsOfOz, testErrorsOfOz), ""},
	{9, "text that looks like a placeholder is expanded", "Caddy GHSA-j8px-rmrx-76h9, CVE-2026-30852, GO-2026-5730", "9",
		tests(testPlaceholders, testPlaceholdersInErrors), ""},
	{10, "forwarding and override headers steer what is decided",
		"Envoy CVE-2023-27487, CVE-2024-45806; oauth2-proxy CVE-2026-40575, CVE-2026-76835; Traefik CVE-2026-35051, CVE-2026-39858; ingress-nginx CVE-2026-94197; tinyauth GHSA-xg2q-62g2-cvcm", "2, 3",
		tests(testSteering, testHandoffToOz), ""},
	{11, "a health check's User-Agent is let through", "oauth2-proxy CVE-2026-34457", "2, 3",
		tests(testSteering), ""},
	{12, "malformed input is answered 200", "Authelia CVE-2021-32637", "2, 3",
		tests(testRandomRequests, testRandomStreams, testRequestAmbiguousLength, testRequestMethods), ""},
	{13, "a body without a length is not looked at", "crowdsec-bouncer-traefik-plugin#321", "3",
		tests(testHandoffCapsule, testRequestContentWhereNoneBelongs, testRequestEmptyCapsule, testRequestLyingLength, testRequestNoLengthAndContent,
			testRequestForgedFolder), ""},
	{14, "too large a body passes, or a part of it is analysed", "coraza-spoa#287", "2, 3",
		tests(testRequestCapsuleTooLarge, testRequestLengthBeyondAllReason, testRequestLimitOfTheSite, testDecisionEarlyFolder), ""},
	{15, "what follows CONNECT or an upgrade becomes a request", "Traefik CVE-2026-71324, traefik#13543", "3",
		tests(testRequestConnect, testRequestExtendedConnectOverH2, testRequestInRefusedBody, testRequestBadChunks, testUpgradeIsIgnoredOnCapsules, testRequestUpgradeElsewhere), ""},
	{16, "a body that does not come holds a place for ever", "Traefik GHSA-4vwx-54mw-vqfw", "5, 10",
		tests(testSilenceAtEachByte, testRequestSlowUpload, testRequestSilentGet, testRequestPauseWhileOzLeaves, testLeaveDuringUpload), ""},
	{17, "two readers of one document see two decisions", "MCP Go SDK CVE-2026-27896; golang/go#14750", "2",
		tests(testDecisionByMalformedAnswer, testDecisionByExactDocument, testDecisionByFolder), "documents"},
	{18, "headers of the answer are passed on", "APISIX CVE-2026-31908, CVE-2026-44087", "7",
		tests(testHeaderOfOz, testConfigText), ""},
	{19, "secrets of the user, or of the gateway, go where they do not belong", "Traefik CVE-2026-41181, GHSA-h2ph-vhm7-g4hp", "6, 7",
		tests(testPrivacy, testHandoffToOz, testHandoffSecrets, testHandoffTokenFromFile), ""},
	{20, "an answer of an odd status is followed or passed on", "Caddy CVE-2026-55458", "2, 7",
		tests(testDecisionByStatus, testHeaderOfOz), ""},
	{21, "text in the config becomes config", "ingress-nginx CVE-2025-24514", "9",
		tests(testConfigText), ""},
	{22, "a client's header, or the environment, names a proxy", "caddy#7934", "6, 9",
		tests(testProxyOfTheEnvironment, testSteering), ""},
	{23, "what looks like an answer is posted straight to the path", "", "3",
		tests(testRequestForgedFolder, testRequestMediaType, testRequestContentWhereNoneBelongs,
			testReservedThroughHandlersInFront, testRefusedBodyIsNobodysAfterwards, testMatcherErrorsGiveTheBodyToNobody), ""},
	{24, "what described the old body describes the new one", "", "4",
		tests(testHandoffRequest, testHandoffExpectAndTrailer, testStaleNamesNeverReachTheApp, testRequestPipeline), ""},
	{25, "an upgrade that the app accepts is a tunnel past every rule about headers", "h2c smuggling, since 2020", "1, 3",
		tests(testTunnelIsNeverOpened, testTunnelsOpenElsewhere, testOnlyWebSocketsTravelOn, testUpgradeIsIgnoredOnCapsules, testRequestExtendedConnectOverH2), ""},
	{26, "what one client does counts against an upstream's health", "caddy#1925", "5",
		tests(testOddMetadataDoesNotMarkOzDown, testSlowClientDoesNotMarkOzDown, testOddPlaceholderDoesNotMarkOzDown, testBrokenAnswersMarkOzDown, testConfigRefusesWhatCannotWork), ""},
	{27, "a few bytes hold all places, slots, memory or connections", "slow-body attacks, as Apache's mod_reqtimeout ends them", "5",
		tests(testCrowdsKeepNobodyOut, testStalledUploadEnds, testStalledUploadsKeepNobodyOut, testStalledStreamsGiveTheirSlotBack, testAttackersWhoComeBackKeepNobodyOut,
			testDisplacedUploadIsToldToComeBack, testIdleUploadsCostOzNothing, testLingeringClientHoldsNothing, testSessionTokensHaveALimit), ""},
	{28, "a wait for the end of a body has no deadline", "", "10",
		tests(testUnfinishedBodyHoldsNoAnswerBack, testOpaqueResponseWriter, testSilentGetEnds, testSiteTimeoutIsNoClientThatLeft, testSessionTokenDeadlineEndsRetries,
			testWaitingStreamDoesNotStarveItsSiblings), ""},
	{29, "two upstreams are taken for one, and one gets the secrets of the other", "", "8",
		tests(testAccountBelongsToOneOz, testAccountsAreApart, testCapacityBelongsToOneOz, testSessionTokenOfItsOwnOz), ""},
	{30, "session tokens go to those for whom they are not meant, or are kept", "", "5, 8",
		tests(testSessionToken, testSessionTokenRefuses, testSessionTokenMethods, testSessionTokenOfItsOwnOz, testSessionTokenNeedsAMatcherThatCanBeShared,
			testSessionTokensHaveALimit, testSessionTokensWaitNoLonger, testTokenStaysUncached), ""},
	{31, "a flood of header lines pushes the decision off the end", "Node's maxHeadersCount", "4",
		tests(testFloodHidesNothing, testHeaderFlood, testHeaderLimitIsAnOption), "lines"},
}

func tests(all ...func(*testing.T)) []func(*testing.T) { return all }

// TestThreats runs the tests of all threats, each once, and says of each threat whether what guards against it holds.
func TestThreats(t *testing.T) {
	t.Parallel()
	t.Cleanup(func() { endedTests.print(t.Output()) }) // after the last of them
	started := map[string]bool{}
	start := func(test func(*testing.T)) {
		if name := nameOf(test); !started[name] {
			started[name] = true
			t.Run(name, func(t *testing.T) {
				endedTests.watch(t)
				test(t)
			})
		}
	}
	last := slices.Concat(takeLong, appTests)
	for _, threat := range threats {
		for _, test := range threat.tests {
			if !slices.ContainsFunc(last, func(other func(*testing.T)) bool { return nameOf(other) == nameOf(test) }) {
				start(test)
			}
		}
	}
	for _, test := range last {
		start(test)
	}
}

// nameOf returns the name of a test as a part of TestThreats: that of its function, less "test".
func nameOf(test func(*testing.T)) string {
	full := runtime.FuncForPC(reflect.ValueOf(test).Pointer()).Name()
	return strings.TrimPrefix(path.Ext(full), ".test")
}

// names returns the names of the tests that look for a threat.
func (t threat) names() (names []string) {
	for _, test := range t.tests {
		names = append(names, nameOf(test))
	}
	if t.inApps == "" {
		return names
	}
	for _, test := range appTests {
		names = append(names, nameOf(test)+"/"+t.inApps)
	}
	return names
}

// What TestThreats says of a threat: the worst of what came of its tests.
const (
	holds     = "holds"
	notTested = "NOT TESTED"
	broken    = "BROKEN"
)

// endings are what came of tests, by their names as parts of TestThreats.
type endings struct {
	mu   sync.Mutex
	word map[string]string
}

var endedTests = endings{word: map[string]string{}}

// watch notes what comes of a test.
func (e *endings) watch(t *testing.T) {
	t.Cleanup(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		word := holds
		switch {
		case t.Failed():
			word = broken
		case t.Skipped():
			word = notTested
		}
		e.word[strings.TrimPrefix(t.Name(), "TestThreats/")] = word
	})
}

// print writes one line for each threat.
func (e *endings) print(w io.Writer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, threat := range threats {
		word, tests := e.judge(threat)
		line := fmt.Sprintf("%2d  %-10s  %s", threat.number, word, threat.what)
		if threat.seen != "" {
			line += " (" + threat.seen + ")"
		}
		if len(tests) > 0 {
			line += ": " + strings.Join(tests, ", ")
		}
		fmt.Fprintln(w, line)
	}
}

// judge returns the word for a threat, and the tests that are the reason unless all are. Where some tests did not run, nobody knows
// whether it holds.
func (e *endings) judge(threat threat) (word string, tests []string) {
	by := map[string][]string{}
	for _, name := range threat.names() {
		word, ended := e.word[name]
		if !ended {
			word = notTested
		}
		by[word] = append(by[word], name)
	}
	switch {
	case len(by[broken]) > 0:
		return broken, by[broken]
	case len(by[notTested]) == 0:
		return holds, nil
	case len(by[holds]) == 0:
		return notTested, nil
	}
	return notTested, by[notTested]
}

// TestThreatsAreListed promises that SECURITY.md lists these threats and no others, in the same words, and that each guards a promise
// that stands there.
func TestThreatsAreListed(t *testing.T) {
	t.Parallel()
	root, err := caddybin.Root()
	check(t, err)
	text, err := os.ReadFile(filepath.Join(root, "SECURITY.md"))
	check(t, err)
	promises := map[string]int{}
	for _, number := range regexp.MustCompile(`(?m)^(\d+)\. `).FindAllStringSubmatch(string(text), -1) {
		promises[number[1]] = 0
	}
	_, section, _ := strings.Cut(string(text), "\n## Threats\n")
	section, _, _ = strings.Cut(section, "\n## ")
	listed := regexp.MustCompile(`(?m)^\| \d.*\|$`).FindAllString(section, -1)
	for i, threat := range threats {
		if threat.number != i+1 || threat.what == "" || len(threat.tests) == 0 {
			t.Errorf("threat %d lacks something: %+v", i+1, threat)
		}
		row := fmt.Sprintf("| %d | %s | %s | %s |", threat.number, threat.what, threat.seen, threat.promises)
		if !slices.Contains(listed, row) {
			t.Errorf("SECURITY.md lacks the row %s", row)
		}
		for number := range strings.SplitSeq(threat.promises, ", ") {
			if _, stands := promises[number]; !stands {
				t.Errorf("threat %d: there is no promise %s", threat.number, number)
			}
			promises[number]++
		}
	}
	if len(listed) != len(threats) {
		t.Errorf("SECURITY.md lists %d threats, and %d are tested", len(listed), len(threats))
	}
	for number, guards := range promises {
		if guards == 0 {
			t.Errorf("no threat is about promise %s", number)
		}
	}
}
