import com.google.gson.Gson;
import com.google.gson.JsonElement;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.catalina.startup.Tomcat;

/** An app on Tomcat that says what it sees of a request: see harness_appservers_test.go. */
public class App extends HttpServlet {
    public static void main(String[] args) throws Exception {
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(args[1]);
        tomcat.setHostname("127.0.0.1");
        tomcat.setPort(Integer.parseInt(args[0]));
        tomcat.getConnector().setProperty("address", "127.0.0.1");
        var context = tomcat.addContext("", null);
        Tomcat.addServlet(context, "app", new App());
        context.addServletMappingDecoded("/*", "app");
        tomcat.start();
        tomcat.getServer().await();
    }

    @Override
    protected void service(HttpServletRequest request, HttpServletResponse response) throws IOException {
        List<List<String>> fields = new ArrayList<>();
        for (String name : Collections.list(request.getHeaderNames())) {
            for (String value : Collections.list(request.getHeaders(name))) {
                fields.add(List.of(name.toLowerCase().replaceAll("[^a-z0-9]", "-"), value));
            }
        }
        JsonElement document = null;
        String failure = null;
        try {
            document = JsonParser.parseString(new String(request.getInputStream().readAllBytes(), StandardCharsets.UTF_8));
        } catch (JsonParseException e) {
            failure = e.getClass().getName();
        }
        Map<String, Object> facts = new HashMap<>();
        facts.put("system_resolution", member(document, "system_resolution"));
        facts.put("resolution_status", member(document, "resolution_status"));
        facts.put("folder_id", member(document, "folder_id"));
        facts.put("event_session_id", member(member(document, "meta_data"), "event_session_id"));
        facts.put("quality", quality(member(document, "analyses")));
        Map<String, Object> report = new HashMap<>();
        report.put("server", "tomcat");
        report.put("decision", request.getHeader("X-Oz-Decision"));
        report.put("fields", fields);
        report.put("document", facts);
        report.put("failure", failure);
        response.setContentType("application/json");
        response.getOutputStream().write(new Gson().toJson(report).getBytes(StandardCharsets.UTF_8));
    }

    private static JsonElement member(JsonElement value, String name) {
        return value != null && value.isJsonObject() ? value.getAsJsonObject().get(name) : null;
    }

    private static JsonElement quality(JsonElement analyses) {
        if (analyses == null || !analyses.isJsonArray()) {
            return null;
        }
        List<JsonElement> found = new ArrayList<>();
        for (JsonElement analysis : analyses.getAsJsonArray()) {
            JsonElement type = member(analysis, "type");
            if (type != null && type.isJsonPrimitive() && type.getAsString().equals("QUALITY")) {
                found.add(member(analysis, "resolution_status"));
            }
        }
        return found.size() == 1 ? found.get(0) : null;
    }
}
