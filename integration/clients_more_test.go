//go:build examples

package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// These tests are a step of .ci/run of their own, since what they compile and start costs many seconds: see CONTRIBUTING.md.

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
	x := startClientTrial(t, 8<<20) // more than sockets buffer
	client := filepath.Join(filepath.Dir(x.web), "android", "CapsuleClient.kt")
	jar := filepath.Join(dir, "client.jar")
	compile := exec.CommandContext(t.Context(), kotlinc, "-cp", strings.Join(jars, ":"), "-include-runtime", "-d", jar,
		client, filepath.Join(dir, "Shim.kt"), filepath.Join(dir, "Main.kt"))
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p := startClientProgram(t, java, "-XX:TieredStopAtLevel=1", "-cp", strings.Join(append(jars, jar), ":"), "MainKt", "http://"+x.net.Addr)
	x.try(t, besideWhole(), p.run)
}
