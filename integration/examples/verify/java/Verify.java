// Shows how an app in Java verifies seals: copy SealVerifier. It needs Java 17 and jackson-databind.
//
//   java -cp jackson-databind.jar:jackson-core.jar:jackson-annotations.jar Verify.java <jwks URL> <audience> <folder file, or - for none> [cool-down and life of keys, in seconds] < seals
//
// It reads a seal from each line and prints "ok <decision>" or why not; the exit code is 1 if one doesn't hold.
//
// Why not by nimbus-jose-jwt or jose4j: Debian has no package of either to run this with, and the JDK has all that ES256 wants. If
// your app has one of them, let it do what verify does up to the signature, with ES256 and the typ oz-seal+jwt as the only ones.

import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.json.JsonMapper;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.math.BigInteger;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.AlgorithmParameters;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.MessageDigest;
import java.security.PublicKey;
import java.security.Signature;
import java.security.spec.ECGenParameterSpec;
import java.security.spec.ECParameterSpec;
import java.security.spec.ECPoint;
import java.security.spec.ECPublicKeySpec;
import java.time.Duration;
import java.util.Base64;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;

class Verify {
    public static void main(String[] args) throws IOException {
        Duration coolDown = Duration.ofSeconds(args.length > 4 ? Long.parseLong(args[3]) : 30);
        Duration maxAge = Duration.ofSeconds(args.length > 4 ? Long.parseLong(args[4]) : 600);
        SealVerifier verifier = new SealVerifier(URI.create(args[0]), args[1], coolDown, maxAge);
        boolean without = args[2].equals("-");
        byte[] folder = without || args[2].isEmpty() ? null : Files.readAllBytes(Path.of(args[2]));
        int status = 0;
        BufferedReader seals = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String seal = seals.readLine(); seal != null; seal = seals.readLine()) {
            try {
                JsonNode claims = without ? verifier.verifyWithoutFolder(seal) : verifier.verify(seal, folder);
                System.out.println("ok " + claims.get("decision").textValue());
            } catch (GeneralSecurityException e) {
                status = 1;
                System.out.println("no: " + String.valueOf(e.getMessage()).replace('\n', ' '));
            }
        }
        System.exit(status);
    }
}

/** Verifies the seals of one site. Make one, and keep it: it keeps the keys. */
final class SealVerifier {
    private static final long LEEWAY = 30; // seconds
    private static final ObjectMapper JSON = JsonMapper.builder()
            .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .build();

    private final URI jwks;
    private final String audience;
    private final Duration coolDown; // between two fetches of the keys: unknown kids, which anyone can make up, mustn't cause more
    private final Duration maxAge; // of the keys: one that the site takes back mustn't be trusted for ever
    private final HttpClient http = HttpClient.newBuilder()
            .connectTimeout(Duration.ofSeconds(5))
            .followRedirects(HttpClient.Redirect.NEVER) // only the site itself may say what its keys are
            .build();
    private Map<String, PublicKey> keys = Map.of();
    private Long fetched; // when the keys came, by System.nanoTime
    private Long tried; // when they were asked for, whatever came of it

    SealVerifier(URI jwks, String audience, Duration coolDown, Duration maxAge) {
        this.jwks = jwks;
        this.audience = audience;
        this.coolDown = coolDown;
        this.maxAge = maxAge;
    }

    /**
     * Returns the claims of a seal that holds, and throws otherwise. Without a folder nothing holds: a genuine seal may come with a
     * forged one.
     *
     * @param folder the folder document as the app received it, byte for byte
     */
    JsonNode verify(String seal, byte[] folder) throws GeneralSecurityException {
        JsonNode claims = verifyWithoutFolder(seal);
        require(folder != null && folder.length > 0, "there is no folder");
        String digest = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(folder));
        require(digest.equals(claims.path("folder_sha256").textValue()), "the folder is not the one that was sealed");
        return claims;
    }

    /** Is for an app that doesn't read the folder, which may be forged. */
    JsonNode verifyWithoutFolder(String seal) throws GeneralSecurityException {
        try {
            String[] parts = seal.split("\\.", -1);
            require(parts.length == 3, "not a compact JWS");
            JsonNode header = JSON.readTree(decode(parts[0]));
            require("ES256".equals(header.path("alg").textValue()), "alg is not ES256");
            require("oz-seal+jwt".equals(header.path("typ").textValue()), "not a seal: typ is another");
            require(!header.has("crit"), "crit is not supported");
            Signature es256 = Signature.getInstance("SHA256withECDSAinP1363Format");
            es256.initVerify(key(header.path("kid").textValue()));
            es256.update((parts[0] + "." + parts[1]).getBytes(StandardCharsets.US_ASCII));
            require(es256.verify(decode(parts[2])), "the signature is wrong");
            JsonNode claims = JSON.readTree(decode(parts[1]));
            check(claims);
            return claims;
        } catch (IOException | IllegalArgumentException e) {
            throw new GeneralSecurityException("not a compact JWS, or the keys can't be fetched", e);
        }
    }

    private void check(JsonNode claims) throws GeneralSecurityException {
        long now = System.currentTimeMillis() / 1000;
        require(claims.path("exp").isIntegralNumber() && claims.get("exp").asLong() > now - LEEWAY, "expired");
        require(claims.path("iat").isIntegralNumber() && claims.get("iat").asLong() <= now + LEEWAY, "issued in the future");
        require(audience.equals(claims.path("aud").textValue()), "another audience");
        require("oz_instant".equals(claims.path("iss").textValue()), "another issuer");
        require(claims.path("decision").isTextual(), "no decision");
    }

    /** Returns the key with that kid, and fetches the keys anew if it isn't among them: so the site can take a new one. */
    private synchronized PublicKey key(String kid) throws IOException, GeneralSecurityException {
        long now = System.nanoTime();
        if (fetched != null && now - fetched >= maxAge.toNanos()) {
            keys = Map.of();
        }
        require(kid != null, "unknown kid");
        if (!keys.containsKey(kid) && (tried == null || now - tried >= coolDown.toNanos())) {
            tried = now;
            keys = fetch();
            fetched = now;
        }
        require(keys.containsKey(kid), "unknown kid");
        return keys.get(kid);
    }

    private Map<String, PublicKey> fetch() throws IOException, GeneralSecurityException {
        HttpRequest request = HttpRequest.newBuilder(jwks).timeout(Duration.ofSeconds(5)).build();
        HttpResponse<String> answer;
        try {
            answer = http.send(request, HttpResponse.BodyHandlers.ofString());
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IOException(e);
        }
        require(answer.statusCode() == 200, "fetching the keys: " + answer.statusCode());
        AlgorithmParameters parameters = AlgorithmParameters.getInstance("EC");
        parameters.init(new ECGenParameterSpec("secp256r1"));
        ECParameterSpec p256 = parameters.getParameterSpec(ECParameterSpec.class);
        Map<String, PublicKey> found = new HashMap<>();
        for (JsonNode key : JSON.readTree(answer.body()).path("keys")) {
            if ("P-256".equals(key.path("crv").textValue()) && key.path("kid").isTextual()) {
                ECPoint point = new ECPoint(integer(key.path("x")), integer(key.path("y")));
                found.put(key.get("kid").textValue(), KeyFactory.getInstance("EC").generatePublic(new ECPublicKeySpec(point, p256)));
            }
        }
        return found;
    }

    private static BigInteger integer(JsonNode coordinate) {
        return new BigInteger(1, decode(coordinate.asText()));
    }

    private static byte[] decode(String part) {
        return Base64.getUrlDecoder().decode(part);
    }

    private static void require(boolean holds, String otherwise) throws GeneralSecurityException {
        if (!holds) {
            throw new GeneralSecurityException(otherwise);
        }
    }
}
