# An app on Rack that acts on each decision, and believes nothing but the seal; the same lines go into an action of Rails. It needs
# verify.rb, too: copy it, and gem install rack puma jwt.
#
#   OZ_JWKS=https://app.example.com/.well-known/oz-instant/jwks.json OZ_AUDIENCE=https://app.example.com puma
require "json"
require "rack"
require_relative "../../verify/ruby/verify"

SEALS = Verifier.new(ENV.fetch("OZ_JWKS"), ENV.fetch("OZ_AUDIENCE"))
ANSWERS = {
  "SUCCESS" => [200, "welcome"],
  "DECLINED" => [403, "declined"],
  "OPERATOR_REQUIRED" => [202, "wait until a person has looked at it"],
  "FAILED" => [503, "could not be checked: capture anew, later"],
  "INVALID" => [400, "does not count: capture anew"],
  "UNAVAILABLE" => [503, "not decided: capture anew, later"],
}.freeze

# Instead of your own sign-in: never believe a plain cookie.
def signed_in_user(request) = request.cookies["user"]

def verify(request)
  begin
    claims = SEALS.verify(request.get_header("HTTP_X_OZ_SEAL"), request.body&.read)
  rescue JWT::DecodeError
    claims = {}
  end
  user = signed_in_user(request)
  own = user && claims["sub"] == user
  status, message = ANSWERS.fetch(own && claims["decision"], [403, "not verified"])
  [status, { "content-type" => "application/json" }, [JSON.generate(message: message, reason: claims["reason"])]]
end

run(lambda do |env|
  request = Rack::Request.new(env)
  request.post? && request.path_info == "/verify" ? verify(request) : [404, {}, []]
end)
