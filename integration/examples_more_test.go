//go:build slow

package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// These tests are a step of .ci/run of their own, since what they compile and start costs many seconds: see CONTRIBUTING.md.

func init() {
	verifiers["Java"] = verifierInJava
	appTests = append(appTests, testAppOnTomcat)
}

// verifierInJava returns the command that runs the verifier in Java.
func verifierInJava(t testing.TB, folder string) []string {
	javac, java := program(t, "javac"), program(t, "java")
	classes := []string{t.TempDir()}
	for _, jar := range []string{"databind", "core", "annotations"} {
		file := "/usr/share/java/jackson-" + jar + ".jar"
		_, err := os.Stat(file)
		needs(t, "Jackson for Java", err)
		classes = append(classes, file)
	}
	path := strings.Join(classes, ":")
	compile := exec.CommandContext(t.Context(), javac, "-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC", "-d", classes[0], "-cp", path, filepath.Join(folder, "java", "Verify.java"))
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return []string{java, "-XX:TieredStopAtLevel=1", "-cp", path, "Verify"}
}

func testAppOnTomcat(t *testing.T) {
	t.Parallel()
	java, address := program(t, "java"), deadAddress(t)
	program(t, "javac") // by which java compiles the app
	jars := needFile(t, "/usr/share/java/tomcat10-embed-core.jar") + ":" + needFile(t, "/usr/share/java/gson.jar")
	startProgram(t, nil, "tcp", address, java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", jars, "App.java", portOf(address), t.TempDir())
	tryApp(t, deadAddress(t), "reverse_proxy "+address, "tomcat")
}

// okHTTP3 gives the OkHttp 3 of Debian the names that Kotlin has for OkHttp 4 and 5, for which the client is.
const okHTTP3 = `
val okhttp3.Response.code get() = code()
val okhttp3.Response.body get() = body()
`

// androidOnJVM runs the client for Android. A line on standard input is the path of the capsule.
const androidOnJVM = `
fun main(args: Array<String>) {
    val site = args[0]
    val http = okhttp3.OkHttpClient()
    while (true) {
        val path = readLine() ?: break
        val waits = mutableListOf<Double>()
        val outcome = CapsuleClient(site, path, http, { waits.add(it) }).verify { token ->
            val request = okhttp3.Request.Builder().url("$site/sdk?token=$token").build()
            http.newCall(request).execute().use { it.body!!.bytes() }
        }
        println("""{"next": "${outcome.next.name.toLowerCase()}", "status": ${outcome.answer.status}, "waits": $waits}""")
    }
}
`

// TestAndroidClient promises that the client for Android does after each fault what docs/clients.md says.
func TestAndroidClient(t *testing.T) {
	t.Parallel()
	kotlinc, java, dir := program(t, "kotlinc"), program(t, "java"), t.TempDir()
	jars := []string{needFile(t, "/usr/share/java/okhttp.jar"), needFile(t, "/usr/share/java/okio.jar")}
	check(t, os.WriteFile(filepath.Join(dir, "Shim.kt"), []byte(okHTTP3), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "Main.kt"), []byte(androidOnJVM), 0o600))
	x := startClientTrial(t)
	client := filepath.Join(filepath.Dir(x.web), "android", "CapsuleClient.kt")
	jar := filepath.Join(dir, "client.jar")
	compile := exec.CommandContext(t.Context(), kotlinc, "-cp", strings.Join(jars, ":"), "-include-runtime", "-d", jar,
		client, filepath.Join(dir, "Shim.kt"), filepath.Join(dir, "Main.kt"))
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p := startClientProgram(t, java, "-XX:TieredStopAtLevel=1", "-cp", strings.Join(append(jars, jar), ":"), "MainKt", "http://"+x.net.Addr)
	x.try(t, casesOfWriters(), p.run)
}

// TestExampleForSpring promises of the example for Spring what threats_appservers_test.go tries with the others.
func TestExampleForSpring(t *testing.T) {
	t.Parallel()
	javac, java, dir := program(t, "javac"), program(t, "java"), t.TempDir()
	var jars []string
	for jar := range strings.FieldsSeq(`spring3-core spring3-beans spring3-context spring3-web spring3-web.servlet spring3-aop spring3-expression commons-logging
		jackson-databind jackson-core jackson-annotations tomcat9-catalina tomcat9-coyote tomcat9-api tomcat9-util tomcat9-util-scan tomcat9-juli
		tomcat9-servlet-api tomcat9-annotations-api tomcat9-jaspic-api tomcat9-jni`) {
		jars = append(jars, needFile(t, "/usr/share/java/"+jar+".jar"))
	}
	examples := filepath.Join(filepath.Dir(appServers(t)), "examples")
	compile := exec.CommandContext(t.Context(), javac, "-d", dir, "-cp", strings.Join(jars, ":"), filepath.Join(appServers(t), "Spring.java"),
		filepath.Join(examples, "apps", "spring", "VerifyController.java"), filepath.Join(examples, "verify", "java", "Verify.java"))
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	address, sealed, straight := deadAddress(t), deadAddress(t), deadAddress(t)
	startProgram(t, exampleEnv(sealed), "tcp", address, java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", strings.Join(append(jars, dir), ":"),
		"Spring", portOf(address), t.TempDir())
	box, recorder := startSandbox(t, sandbox.Options{BestShotSize: 1000}), newRawApp(t)
	handler := "reverse_proxy " + address + "\n}"
	p := startCaddy(t, exampleSite+handler+straightSite+handler, withEnv("SANDBOX", box.URL), withEnv("RECORDER", recorder.Addr),
		withEnv("SEALED", sealed), withEnv("STRAIGHT", straight))
	x := exampleTrial{oz: box, recorder: recorder, gateway: p.client(t, "h1"), straight: p.client(t, "h1"), name: "verify"}
	x.gateway.URL, x.straight.URL = "http://"+sealed, "http://"+straight
	x.decide(t)
	x.forge(t)
}

// TestExamplesParse promises of the examples that nothing here can compile that they are at least written in their language.
func TestExamplesParse(t *testing.T) {
	t.Parallel()
	node := program(t, "node")
	needFile(t, filepath.Join("examples", "syntax", "node_modules"))
	for grammar, files := range map[string][]string{
		"swift":   {"examples/clients/ios/CapsuleClient.swift"},
		"c_sharp": {"examples/apps/aspnet/Program.cs", "examples/verify/csharp/Verify.cs"},
	} {
		args := append([]string{"examples/syntax/parse.js", grammar}, files...)
		if out, err := exec.CommandContext(t.Context(), node, args...).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// TestWebClientInBrowser promises the same of the client for the web as TestWebClient, by the browser's own XMLHttpRequest, and that
// the page's code calls the vendor's SDK as its guide does.
func TestWebClientInBrowser(t *testing.T) {
	t.Parallel()
	x := startClientTrial(t)
	chromium := startBrowser(t)
	site := "http://" + x.net.Addr
	p := openTab(t, chromium, site, "status of|ERR_CONNECTION|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE")
	p.do(t, chromedp.Navigate(site+"/page"))
	inPage[bool](t, p, `(window.OzLiveness = {
		open: async ({session_token, action, on_capture_complete, on_error}) => {
			try {
				on_capture_complete(action[0], await (await fetch('/sdk?token=' + session_token)).blob());
			} catch (error) { on_error(error); }
		},
	}, true)`)
	inPage[bool](t, p, `(window.timeouts = [], XMLHttpRequest.prototype.send = (send => function (body) {
		timeouts.push(this.timeout);
		send.call(this, body);
	})(XMLHttpRequest.prototype.send), true)`)
	capture := `token => new Promise((resolve, reject) => OzLiveness.open({
		session_token: token, action: ['video_selfie_blank'], on_capture_complete: (_, capsule) => resolve(capsule), on_error: reject}))`
	x.try(t, casesOfBrowsers(), func(t testing.TB, path string) clientOutcome {
		return inPage[clientOutcome](t, p, `(async () => {
			const {verify} = await import('/web/capsule.js'), waits = [];
			const {next, status} = await verify(`+capture+`, {url: '`+path+`', sleep: seconds => waits.push(seconds)});
			return {Next: next, Status: status, Waits: waits};
		})()`)
	})
	if timeouts := inPage[[]int](t, p, `timeouts`); len(timeouts) == 0 || slices.Min(timeouts) < 195_000 { // the defaults of upload_timeout, wait and timeout
		t.Errorf("a page gives up after %v ms, or never", timeouts)
	}
	x.oz.fault(t, "")
	shown := inPage[[]string](t, p, `(async () => {
		const {check} = await import('/web/page.js'), shown = [];
		await check(text => shown.push(text));
		return shown;
	})()`)
	if len(shown) < 2 || shown[len(shown)-2] != "100 %" || shown[len(shown)-1] != "welcome" {
		t.Errorf("the page showed %q", shown)
	}
	denied := inPage[[]string](t, p, `(async () => {
		window.OzLiveness = {open: ({on_error}) => on_error(new Error('no camera'))};
		const {check} = await import('/web/page.js'), shown = [];
		await check(text => shown.push(text)).catch(() => {});
		return shown;
	})()`)
	if !slices.Equal(denied, []string{"Please try again later."}) {
		t.Errorf("without a camera the page showed %q", denied)
	}
}

// TestWebClientInBrowserOverHTTP2 promises that a capsule which Chromium sends once more by itself, as the page cannot prevent, counts
// once: Oz refuses the second, and the client captures anew.
func TestWebClientInBrowserOverHTTP2(t *testing.T) {
	t.Parallel()
	x := startClientTrial(t)
	net := startRelay(t, x.HTTPS)
	site := "https://" + net.Addr
	p := openTab(t, startBrowser(t), site, "status of 400")
	p.do(t, chromedp.Navigate(site+"/page"))
	x.oz.fault(t, "hang*1")
	inPage[bool](t, p, `(import('/web/capsule.js').then(async ({send}) => {
		const token = (await (await fetch('/session_token')).json()).session_token;
		window.outcome = await send(await (await fetch('/sdk?token=' + token)).blob());
	}), true)`)
	x.oz.await(t, func(s sandbox.Stats) bool { return s.Bytes > 3*middleOfCapsule }) // it is whole, and there is no answer yet
	net.cut()
	p.await(t, `window.outcome`)
	got := inPage[clientOutcome](t, p, `({Next: outcome.next, Status: outcome.status})`)
	if sent := len(x.oz.RequestsOn(sandbox.OnFolders)); got.Next != "anew" || got.Status != 400 || sent != 2 {
		t.Errorf("got %+v after %d capsules at Oz, want anew, 400 after 2", got, sent)
	}
}
