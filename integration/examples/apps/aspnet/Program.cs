// A minimal API on ASP.NET Core that acts on each decision, and believes nothing but the seal. It needs SealVerifier of
// ../../verify/csharp/Verify.cs, too: copy the class. OZ_JWKS and OZ_AUDIENCE are in the environment.
//
// The tests of this repository parse this one and never run it: Debian has no .NET. Try each decision, and a forged seal, before
// you rely on it.

using Microsoft.IdentityModel.JsonWebTokens;
using Microsoft.IdentityModel.Tokens;

var app = WebApplication.CreateBuilder(args).Build();
var seals = new SealVerifier(new Uri(app.Configuration["OZ_JWKS"]!), app.Configuration["OZ_AUDIENCE"]!, TimeSpan.FromSeconds(30), TimeSpan.FromMinutes(10));
var answers = new Dictionary<string, (int Status, string Message)>
{
    ["SUCCESS"] = (200, "welcome"),
    ["DECLINED"] = (403, "declined"),
    ["OPERATOR_REQUIRED"] = (202, "wait until a person has looked at it"),
    ["FAILED"] = (503, "could not be checked: capture anew, later"),
    ["INVALID"] = (400, "does not count: capture anew"),
    ["UNAVAILABLE"] = (503, "not decided: capture anew, later"),
};

app.MapPost("/verify", async (HttpRequest request) =>
{
    using var folder = new MemoryStream();
    await request.Body.CopyToAsync(folder);
    JsonWebToken? claims = null;
    try
    {
        claims = await seals.VerifyAsync(request.Headers["X-Oz-Seal"].ToString(), folder.ToArray());
    }
    catch (SecurityTokenException)
    {
        // then it has no claims
    }
    var user = SignedInUser(request);
    var own = !string.IsNullOrEmpty(user) && claims?.Subject == user;
    var found = own && answers.TryGetValue(claims!.GetPayloadValue<string>("decision"), out var answer) ? answer : (403, "not verified");
    string? reason = null;
    claims?.TryGetPayloadValue("reason", out reason);
    return Results.Json(new { message = found.Item2, reason }, statusCode: found.Item1);
});
app.Run();

// Instead of your own sign-in: never believe a plain cookie.
static string? SignedInUser(HttpRequest request) => request.Cookies["user"];
