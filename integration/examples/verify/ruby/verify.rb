# Shows how an app in Ruby verifies seals: copy Verifier, or require this file. It needs jwt (gem install jwt).
#
#   ruby verify.rb <jwks URL> <audience> <folder file, or - for none> [cool-down and life of keys, in seconds] < seals
#
# It reads a seal from each line and prints "ok <decision>" or why not; the exit code is 1 if one doesn't hold.
require 'digest'
require 'json'
require 'jwt'
require 'net/http'

# Verifies the seals of one site. Make one, and keep it: it keeps the keys, for max_age seconds, so that one that the site takes back
# isn't trusted for ever.
class Verifier
  LEEWAY = 30 # seconds

  def initialize(jwks, audience, cool_down = 30, max_age = 600)
    @jwks, @audience, @cool_down, @max_age = URI(jwks), audience, cool_down, max_age
    @lock, @keys = Mutex.new, {}
    @fetched = @tried = -Float::INFINITY # when the keys came, and when they were asked for, whatever came of it
  end

  # Returns the claims of a seal that holds, and raises JWT::DecodeError otherwise. folder is the folder document as the app
  # received it, byte for byte. Without one nothing holds: a genuine seal may come with a forged folder.
  def verify(seal, folder)
    claims = verify_without_folder(seal)
    if folder.to_s.empty? || Digest::SHA256.hexdigest(folder) != claims['folder_sha256']
      raise JWT::DecodeError, 'the folder is not the one that was sealed'
    end

    claims
  end

  # Is for an app that doesn't read the folder, which may be forged.
  def verify_without_folder(seal)
    raise JWT::DecodeError, 'not a compact JWS' unless seal.to_s.count('.') == 2 # jwt overlooks dots at the end

    claims, header = JWT.decode(
      seal, nil, true,
      algorithms: ['ES256'], # never what the seal itself names
      aud: @audience, verify_aud: true, iss: 'oz_instant', verify_iss: true, leeway: LEEWAY,
      required_claims: %w[aud iss exp iat decision]
    ) { |head| key(head['kid']) }
    raise JWT::DecodeError, 'not a seal: typ is another' unless header['typ'] == 'oz-seal+jwt'
    # Not by verify_iat, which has no leeway.
    raise JWT::DecodeError, 'issued in the future' unless claims['iat'].is_a?(Integer) && claims['iat'] <= Time.now.to_i + LEEWAY

    claims
  rescue NoMethodError, TypeError, ArgumentError => e # of jwt, by a header that is no object, or an alg that is no text
    raise JWT::DecodeError, "not a compact JWS: #{e.class}"
  end

  private

  # Returns the key with that kid, and fetches the keys anew if it isn't among them: so the site can take a new one.
  def key(kid)
    @lock.synchronize do
      now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      @keys = {} if now - @fetched >= @max_age
      if !@keys.key?(kid) && now - @tried >= @cool_down
        @tried = now
        @keys, @fetched = fetch, now
      end
      @keys.fetch(kid) { raise JWT::DecodeError, 'unknown kid' }
    end
  end

  # Doesn't follow redirects: only the site itself may say what its keys are.
  def fetch
    answer = Net::HTTP.start(@jwks.host, @jwks.port, use_ssl: @jwks.scheme == 'https', open_timeout: 5, read_timeout: 5, max_retries: 0) do |http|
      http.get(@jwks.request_uri)
    end
    raise JWT::DecodeError, "fetching the keys: #{answer.code}" unless answer.is_a?(Net::HTTPOK)

    list = JSON.parse(answer.body).fetch('keys').select { |key| key['crv'] == 'P-256' && key['kid'].is_a?(String) }
    list.to_h { |key| [key['kid'], JWT::JWK.import(key).keypair] }
  rescue StandardError => e # whatever is wrong with the answer, its seals are refused
    raise JWT::DecodeError, "fetching the keys: #{e.class}"
  end
end

if $PROGRAM_NAME == __FILE__ # run, and not required
  jwks, audience, file, *seconds = ARGV
  verifier = Verifier.new(jwks, audience, *seconds.map(&:to_f))
  folder = File.binread(file) unless ['', '-'].include?(file)
  status = 0
  $stdout.sync = true
  $stdin.each_line(chomp: true) do |seal|
    claims = file == '-' ? verifier.verify_without_folder(seal) : verifier.verify(seal, folder)
    puts "ok #{claims['decision']}"
  rescue JWT::DecodeError => e
    status = 1
    puts "no: #{e.message.tr("\n", ' ')}"
  end
  exit status
end
