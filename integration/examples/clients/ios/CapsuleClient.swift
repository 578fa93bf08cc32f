import Foundation

/// Gets session tokens and sends capsules of the Oz Mobile SDK to a site with oz_instant, by URLSession. The rules are those of
/// docs/clients.md. It needs iOS 15.
///
/// The tests of this repository parse this one and never run it: they have no Swift. Try it on the sandbox, with its faults, before
/// you rely on it.
final class CapsuleClient: NSObject, URLSessionTaskDelegate {
    enum Next { case done, again, anew, later, never }

    /// What the site said. Without an answer the status is 0.
    struct Answer {
        var status = 0
        var body = Data()
        var retryAfter = 0.0

        var json: [String: Any] { (try? JSONSerialization.jsonObject(with: body)) as? [String: Any] ?? [:] }

        var problem: String? {
            let type = json["type"] as? String ?? ""
            let urn = "urn:oz-instant:problem:"
            return type.hasPrefix(urn) ? String(type.dropFirst(urn.count)) : nil
        }
    }

    private static let tries = 4 // of one capsule, or of one session token
    private static let captures = 3 // before the user is told to come back later
    private static let longest = 60.0 // seconds between two tries

    // The gateway says of these that Oz has not used the capsule.
    private static let mayComeAgain: Set = ["overloaded", "upload-timeout", "unreadable-capsule"]

    private let site: URL // https://app.example.com
    private let onProgress: (Double) -> Void
    private lazy var session: URLSession = {
        let configuration = URLSessionConfiguration.default
        configuration.waitsForConnectivity = true // instead of failing before anything was sent
        configuration.timeoutIntervalForRequest = 180
        configuration.timeoutIntervalForResource = 600 // or it waits for a network for a week
        return URLSession(configuration: configuration, delegate: self, delegateQueue: nil)
    }()

    init(site: URL, onProgress: @escaping (Double) -> Void = { _ in }) {
        self.site = site
        self.onProgress = onProgress
    }

    /// Captures and sends until the app has answered, or nothing helps any more: done, later (another capture may help in some
    /// minutes), never (the app or the site must be mended) or anew (several captures were refused). capture shows the SDK's screen
    /// with a session token and returns the bytes of the container.
    func verify(capture: (String) async throws -> Data) async throws -> (next: Next, answer: Answer) {
        for captured in 1...Self.captures {
            let got = try await sessionToken()
            guard got.status == 200, let token = got.json["session_token"] as? String else { return (.later, got) }
            let outcome = try await send(capture(token))
            if outcome.next != .anew || captured == Self.captures { return outcome }
        }
        fatalError()
    }

    /// Sends a capsule, and sends it again only where the gateway says that it may come again.
    func send(_ capsule: Data) async throws -> (next: Next, answer: Answer) {
        var request = URLRequest(url: site.appendingPathComponent("verify"))
        request.httpMethod = "POST"
        request.setValue("application/octet-stream", forHTTPHeaderField: "Content-Type")
        return try await repeated(judge) { await self.answer { try await self.session.upload(for: request, from: capsule) } }
    }

    /// Gets a session token. A token that never arrived harms nobody, so asking again is always safe.
    func sessionToken() async throws -> Answer {
        let request = URLRequest(url: site.appendingPathComponent("session_token"), cachePolicy: .reloadIgnoringLocalCacheData)
        return try await repeated({ $0.retryAfter > 0 ? .again : .done }) {
            await self.answer { try await self.session.data(for: request) }
        }.answer
    }

    private func judge(_ answer: Answer) -> Next {
        guard let problem = answer.problem else { // no answer, or not the gateway's: it may have been used
            return answer.status > 0 && answer.status < 500 && answer.status != 429 ? .done : .later
        }
        if Self.mayComeAgain.contains(problem) && (answer.status != 503 || answer.retryAfter > 0) { return .again }
        if [400, 403, 409].contains(answer.status) { return .anew }
        return [405, 413, 415, 431].contains(answer.status) ? .never : .later
    }

    private func repeated(_ judge: (Answer) -> Next, ask: () async -> Answer) async throws -> (next: Next, answer: Answer) {
        var wait = 1.0
        for tried in 1...Self.tries {
            let answer = await ask()
            let next = judge(answer)
            if next != .again { return (next, answer) }
            // More than asked for, so that clients that were refused at once don't come at once.
            let pause = (answer.retryAfter > 0 ? answer.retryAfter : wait) * Double.random(in: 1...1.5)
            if tried == Self.tries || pause > Self.longest { return (.later, answer) }
            try await Task.sleep(nanoseconds: UInt64(pause * 1_000_000_000))
            wait *= 2
        }
        fatalError()
    }

    private func answer(_ ask: () async throws -> (Data, URLResponse)) async -> Answer {
        guard let (body, response) = try? await ask(), let http = response as? HTTPURLResponse else { return Answer() }
        return Answer(status: http.statusCode, body: body, retryAfter: Double(http.value(forHTTPHeaderField: "Retry-After") ?? "") ?? 0)
    }

    // A redirect would post the capsule a second time.
    func urlSession(
        _ session: URLSession, task: URLSessionTask, willPerformHTTPRedirection response: HTTPURLResponse, newRequest request: URLRequest,
        completionHandler: @escaping (URLRequest?) -> Void
    ) {
        completionHandler(nil)
    }

    func urlSession(
        _ session: URLSession, task: URLSessionTask, didSendBodyData bytesSent: Int64, totalBytesSent: Int64, totalBytesExpectedToSend: Int64
    ) {
        onProgress(Double(totalBytesSent) / Double(totalBytesExpectedToSend))
    }
}
