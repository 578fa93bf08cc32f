import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.MissingNode;
import java.net.URI;
import java.security.GeneralSecurityException;
import java.time.Duration;
import java.util.Map;
import org.springframework.http.ResponseEntity;
import org.springframework.web.bind.annotation.CookieValue;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RequestHeader;
import org.springframework.web.bind.annotation.RestController;

/**
 * A controller for Spring MVC and Spring Boot that acts on each decision, and believes nothing but the seal. It needs SealVerifier,
 * too: copy it. OZ_JWKS and OZ_AUDIENCE are in the environment.
 */
@RestController
public class VerifyController {
    record Answer(int status, String message) {}

    private static final Answer NOT_VERIFIED = new Answer(403, "not verified");
    private static final Map<String, Answer> ANSWERS = Map.of(
            "SUCCESS", new Answer(200, "welcome"),
            "DECLINED", new Answer(403, "declined"),
            "OPERATOR_REQUIRED", new Answer(202, "wait until a person has looked at it"),
            "FAILED", new Answer(503, "could not be checked: capture anew, later"),
            "INVALID", new Answer(400, "does not count: capture anew"),
            "UNAVAILABLE", new Answer(503, "not decided: capture anew, later"));

    private final SealVerifier seals = new SealVerifier(
            URI.create(System.getenv("OZ_JWKS")), System.getenv("OZ_AUDIENCE"), Duration.ofSeconds(30), Duration.ofMinutes(10));

    // The user comes from your own sign-in, such as a Principal: never believe a plain cookie.
    @PostMapping("/verify")
    public ResponseEntity<Map<String, String>> verify(
            @RequestHeader(name = "X-Oz-Seal", defaultValue = "") String seal,
            @RequestBody(required = false) byte[] folder,
            @CookieValue(name = "user", required = false) String user) {
        JsonNode claims = MissingNode.getInstance();
        try {
            claims = seals.verify(seal, folder);
        } catch (GeneralSecurityException e) {
            // then it has no claims
        }
        boolean own = user != null && user.equals(claims.path("sub").textValue());
        Answer answer = own ? ANSWERS.getOrDefault(claims.path("decision").asText(), NOT_VERIFIED) : NOT_VERIFIED;
        return ResponseEntity.status(answer.status())
                .body(Map.of("message", answer.message(), "reason", claims.path("reason").asText()));
    }
}
