// Shows how an app in C# verifies seals: copy SealVerifier. It needs Microsoft.IdentityModel.JsonWebTokens.
//
//   dotnet run -- <jwks URL> <audience> <folder file, or - for none> [cool-down and life of keys, in seconds] < seals
//
// It reads a seal from each line and prints "ok <decision>" or why not; the exit code is 1 if one doesn't hold.
//
// The tests of this repository don't run this one: Debian has no .NET. Run it on the seals in ../vectors before you rely on it.

using System.Globalization;
using System.Security.Cryptography;
using Microsoft.IdentityModel.JsonWebTokens;
using Microsoft.IdentityModel.Tokens;

var seconds = args.Skip(3).Select(arg => double.Parse(arg, CultureInfo.InvariantCulture)).ToArray();
var coolDown = TimeSpan.FromSeconds(seconds.Length > 1 ? seconds[0] : 30);
var maxAge = TimeSpan.FromSeconds(seconds.Length > 1 ? seconds[1] : 600);
var verifier = new SealVerifier(new Uri(args[0]), args[1], coolDown, maxAge);
var folder = args[2] is "" or "-" ? null : File.ReadAllBytes(args[2]);
var status = 0;
while (Console.ReadLine() is { } seal)
{
    try
    {
        var claims = await (args[2] == "-" ? verifier.VerifyWithoutFolderAsync(seal) : verifier.VerifyAsync(seal, folder));
        Console.WriteLine("ok " + claims.GetPayloadValue<string>("decision"));
    }
    catch (SecurityTokenException e)
    {
        status = 1;
        Console.WriteLine("no: " + e.Message.ReplaceLineEndings(" "));
    }
}
return status;

/// <summary>
/// Verifies the seals of one site. Make one, and keep it: it keeps the keys, for maxAge, so that one that the site takes back isn't
/// trusted for ever.
/// </summary>
public sealed class SealVerifier(Uri jwks, string audience, TimeSpan coolDown, TimeSpan maxAge)
{
    private static readonly TimeSpan Leeway = TimeSpan.FromSeconds(30);
    private static readonly HttpClient Http = new(new SocketsHttpHandler { AllowAutoRedirect = false }) // only the site itself may say what its keys are
    {
        Timeout = TimeSpan.FromSeconds(5),
        MaxResponseContentBufferSize = 256 << 10,
    };

    private readonly SemaphoreSlim turn = new(1);
    private JsonWebKeySet keys = new();
    private long? fetched; // when the keys came, by Environment.TickCount64
    private long? tried; // when they were asked for, whatever came of it

    /// <summary>
    /// Returns the seal if it holds, and throws a SecurityTokenException otherwise. Without a folder nothing holds: a genuine seal may
    /// come with a forged one.
    /// </summary>
    /// <param name="seal">the value of X-Oz-Seal</param>
    /// <param name="folder">the folder document as the app received it, byte for byte</param>
    public async Task<JsonWebToken> VerifyAsync(string seal, byte[]? folder)
    {
        var claims = await VerifyWithoutFolderAsync(seal);
        if (folder is not { Length: > 0 } ||
            !claims.TryGetPayloadValue<string>("folder_sha256", out var digest) ||
            digest != Convert.ToHexString(SHA256.HashData(folder)).ToLowerInvariant())
        {
            throw new SecurityTokenException("the folder is not the one that was sealed");
        }
        return claims;
    }

    /// <summary>Is for an app that doesn't read the folder, which may be forged.</summary>
    public async Task<JsonWebToken> VerifyWithoutFolderAsync(string seal)
    {
        var key = await KeyAsync(KidOf(seal));
        var result = await new JsonWebTokenHandler().ValidateTokenAsync(seal, new TokenValidationParameters
        {
            ValidAlgorithms = [SecurityAlgorithms.EcdsaSha256], // never what the seal itself names
            ValidTypes = ["oz-seal+jwt"],
            ValidAudience = audience,
            ValidIssuer = "oz_instant",
            IssuerSigningKey = key,
            TryAllIssuerSigningKeys = false,
            RequireExpirationTime = true,
            RequireSignedTokens = true,
            ClockSkew = Leeway,
        });
        if (!result.IsValid)
        {
            throw new SecurityTokenException(result.Exception.Message, result.Exception);
        }
        var claims = (JsonWebToken)result.SecurityToken;
        // The handler looks at exp and nbf, and not at iat.
        if (!claims.TryGetPayloadValue<long>("iat", out var iat) || iat > DateTimeOffset.UtcNow.Add(Leeway).ToUnixTimeSeconds())
        {
            throw new SecurityTokenException("no iat, or issued in the future");
        }
        if (!claims.TryGetPayloadValue<string>("decision", out _))
        {
            throw new SecurityTokenException("no decision");
        }
        return claims;
    }

    private static string? KidOf(string seal)
    {
        try
        {
            return new JsonWebToken(seal).Kid;
        }
        catch (Exception e) // SecurityTokenMalformedException is an ArgumentException, and no SecurityTokenException
        {
            throw new SecurityTokenException("not a compact JWS", e);
        }
    }

    /// <summary>Returns the key with that kid, and fetches the keys anew if it isn't among them: so the site can take a new one.</summary>
    private async Task<SecurityKey> KeyAsync(string? kid)
    {
        await turn.WaitAsync();
        try
        {
            var now = Environment.TickCount64;
            if (fetched is { } at && now - at >= maxAge.TotalMilliseconds)
            {
                keys = new JsonWebKeySet();
            }
            // Unknown kids, which anyone can make up, mustn't cause more fetches than one in each cool-down.
            if (Find(kid) is null && (tried is not { } last || now - last >= coolDown.TotalMilliseconds))
            {
                tried = now;
                keys = new JsonWebKeySet(await Http.GetStringAsync(jwks));
                fetched = now;
            }
            return Find(kid) ?? throw new SecurityTokenSignatureKeyNotFoundException("unknown kid");
        }
        catch (Exception e) when (e is not SecurityTokenException) // whatever is wrong with the answer, its seals are refused
        {
            throw new SecurityTokenException("fetching the keys: " + e.GetType().Name, e);
        }
        finally
        {
            turn.Release();
        }
    }

    // A seal without a kid, or with one that is no text, has no key, even if a key without a kid is published.
    private JsonWebKey? Find(string? kid) => string.IsNullOrEmpty(kid)
        ? null
        : keys.Keys.FirstOrDefault(key => key.Kid == kid && key.Kty == "EC" && key.Crv == "P-256");
}
