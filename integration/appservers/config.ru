# An app on Rack and Puma that says what it sees of a request: see harness_appservers_test.go.
require "json"
require "rack"

begin # the example, if its libraries are installed
  example, = Rack::Builder.parse_file(File.expand_path("../examples/apps/rack/config.ru", __dir__))
rescue LoadError
  example = nil
end

def folded(name) = name.downcase.gsub(/[^a-z0-9]/, "-")

def member(value, name) = value.is_a?(Hash) ? value[name] : nil

def facts(document)
  analyses = member(document, "analyses")
  quality = (analyses.is_a?(Array) ? analyses : []).select { |a| member(a, "type") == "QUALITY" }
  {
    system_resolution: member(document, "system_resolution"),
    resolution_status: member(document, "resolution_status"),
    folder_id: member(document, "folder_id"),
    event_session_id: member(member(document, "meta_data"), "event_session_id"),
    quality: quality.size == 1 ? member(quality[0], "resolution_status") : nil,
  }
end

run(lambda do |env|
  next example.call(env.merge("PATH_INFO" => "/verify")) if example && env["PATH_INFO"].start_with?("/example/")

  fields = env.select { |name, _| name.start_with?("HTTP_") }.map { |name, value| [folded(name.delete_prefix("HTTP_")), String.new(value, encoding: "UTF-8").scrub] }
  begin
    document = JSON.parse(String.new(env["rack.input"].read, encoding: "UTF-8"), max_nesting: 512)
  rescue JSON::ParserError => error
    failure = error.class.name
  end
  report = { server: "puma", decision: env["HTTP_X_OZ_DECISION"], fields: fields, document: facts(document), failure: failure }
  [200, { "Content-Type" => "application/json" }, [JSON.generate(report)]]
end)
