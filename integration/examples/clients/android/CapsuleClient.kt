import java.io.IOException
import java.util.concurrent.TimeUnit
import kotlin.random.Random
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.RequestBody
import okio.BufferedSink

/**
 * Gets session tokens and sends capsules of the Oz Mobile SDK to a site with oz_instant, by OkHttp. The rules are those of
 * docs/clients.md. All calls block: make them on a worker thread.
 */
class CapsuleClient(
    private val site: String, // https://app.example.com
    private val path: String = "/verify",
    http: OkHttpClient = OkHttpClient(),
    private val sleep: (Double) -> Unit = { seconds -> Thread.sleep((seconds * 1000).toLong()) }
) {
    enum class Next { DONE, AGAIN, ANEW, LATER, NEVER }

    /** What the site said. Without an answer the status is 0, and sent tells whether all of the request may have arrived. */
    class Answer(val status: Int, val body: String, val problem: String?, val retryAfter: Int, val sent: Boolean)

    /**
     * DONE: the app has answered. LATER: another capture may help in some minutes. NEVER: the app or the site must be mended. ANEW:
     * several captures were refused.
     */
    class Outcome(val next: Next, val answer: Answer)

    // By itself OkHttp repeats a request after a lost connection, a 408 and a redirect, whether or not it was used.
    private val http = http.newBuilder().retryOnConnectionFailure(false).followRedirects(false)
        .readTimeout(3, TimeUnit.MINUTES).build()

    /**
     * Captures and sends until the app has answered, or nothing helps any more. capture shows the SDK's screen with a session token
     * and returns the bytes of the container.
     */
    fun verify(capture: (String) -> ByteArray): Outcome {
        for (captured in 1..CAPTURES) {
            val got = sessionToken()
            val token = TOKEN.find(got.body)?.groupValues?.get(1)
            if (got.status != 200 || token == null) return Outcome(Next.LATER, got)
            val outcome = send(capture(token))
            if (outcome.next != Next.ANEW || captured == CAPTURES) return outcome
        }
        throw IllegalStateException()
    }

    /** Sends a capsule, and sends it again only where the gateway says that it may come again, or where it never left whole. */
    fun send(capsule: ByteArray, onProgress: (Double) -> Unit = {}): Outcome = repeat(::judge) {
        val body = CapsuleBody(capsule, onProgress)
        ask(Request.Builder().url(site + path).header("Content-Type", "application/octet-stream").post(body).build()) { body.sent }
    }

    /** Gets a session token. A token that never arrived harms nobody, so asking again is always safe. */
    fun sessionToken(): Answer = repeat({ if (it.retryAfter > 0) Next.AGAIN else Next.DONE }) {
        ask(Request.Builder().url("$site/session_token").header("Cache-Control", "no-store").build()) { false }
    }.answer

    private fun judge(answer: Answer): Next = when {
        answer.status == 0 -> if (answer.sent) Next.LATER else Next.AGAIN
        answer.problem == null -> if (answer.status < 500 && answer.status != 429) Next.DONE else Next.LATER // not the gateway's: it may have been used
        answer.problem in MAY_COME_AGAIN && (answer.status != 503 || answer.retryAfter > 0) -> Next.AGAIN
        answer.status in listOf(400, 403, 409) -> Next.ANEW
        answer.status in listOf(405, 413, 415, 431) -> Next.NEVER
        else -> Next.LATER
    }

    private fun repeat(judge: (Answer) -> Next, ask: () -> Answer): Outcome {
        var wait = 1.0
        for (tried in 1..TRIES) {
            val answer = ask()
            val next = judge(answer)
            if (next != Next.AGAIN) return Outcome(next, answer)
            // More than asked for, so that clients that were refused at once don't come at once.
            val pause = (if (answer.retryAfter > 0) answer.retryAfter.toDouble() else wait) * Random.nextDouble(1.0, 1.5)
            if (tried == TRIES || pause > LONGEST) return Outcome(Next.LATER, answer)
            sleep(pause)
            wait *= 2
        }
        throw IllegalStateException()
    }

    private fun ask(request: Request, sent: () -> Boolean): Answer = try {
        http.newCall(request).execute().use { response ->
            val body = response.body?.string() ?: ""
            val isProblem = response.header("Content-Type")?.startsWith("application/problem+json") == true
            val problem = if (isProblem) PROBLEM.find(body)?.groupValues?.get(1) else null
            Answer(response.code, body, problem, response.header("Retry-After")?.toIntOrNull() ?: 0, true)
        }
    } catch (e: IOException) {
        Answer(0, "", null, 0, sent())
    }

    private class CapsuleBody(val capsule: ByteArray, val onProgress: (Double) -> Unit) : RequestBody() {
        @Volatile var sent = false // whether Oz may have all of it

        override fun contentType() = null

        override fun contentLength() = capsule.size.toLong()

        override fun writeTo(sink: BufferedSink) {
            if (sent) throw IOException("a capsule is sent once") // OkHttp repeats a request by itself after 503 with Retry-After: 0
            for (start in capsule.indices step PIECE) {
                val size = minOf(PIECE, capsule.size - start)
                sent = start + size == capsule.size
                sink.write(capsule, start, size)
                sink.flush()
                onProgress((start + size).toDouble() / capsule.size)
            }
        }
    }

    private companion object {
        const val TRIES = 4 // of one capsule, or of one session token
        const val CAPTURES = 3 // before the user is told to come back later
        const val LONGEST = 60.0 // seconds between two tries
        const val PIECE = 64 * 1024

        // The gateway says of these that Oz has not used the capsule.
        val MAY_COME_AGAIN = setOf("overloaded", "upload-timeout", "unreadable-capsule")
        val PROBLEM = Regex("\"type\"\\s*:\\s*\"urn:oz-instant:problem:([a-z_-]+)\"")
        val TOKEN = Regex("\"session_token\"\\s*:\\s*\"([^\"]+)\"")
    }
}
