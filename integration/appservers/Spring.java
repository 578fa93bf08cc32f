import java.io.File;
import java.util.List;
import org.apache.catalina.startup.Tomcat;
import org.springframework.http.converter.ByteArrayHttpMessageConverter;
import org.springframework.http.converter.json.MappingJackson2HttpMessageConverter;
import org.springframework.web.context.support.AnnotationConfigWebApplicationContext;
import org.springframework.web.servlet.DispatcherServlet;
import org.springframework.web.servlet.mvc.method.annotation.RequestMappingHandlerAdapter;
import org.springframework.web.servlet.mvc.method.annotation.RequestMappingHandlerMapping;

/**
 * Runs the example for Spring MVC on Tomcat 9, as Boot would: see examples_more_test.go. Without @EnableWebMvc, since Debian's Spring
 * cannot make proxies on its Java.
 */
public class Spring {
    public static void main(String[] args) throws Exception {
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(args[1]);
        tomcat.setHostname("127.0.0.1");
        tomcat.setPort(Integer.parseInt(args[0]));
        tomcat.getConnector().setProperty("address", "127.0.0.1");
        var context = tomcat.addContext("", new File(args[1]).getAbsolutePath());
        var beans = new AnnotationConfigWebApplicationContext();
        beans.register(RequestMappingHandlerMapping.class, Adapter.class, VerifyController.class);
        Tomcat.addServlet(context, "spring", new DispatcherServlet(beans)).setLoadOnStartup(1);
        context.addServletMappingDecoded("/example/*", "spring");
        tomcat.start();
        tomcat.getServer().await();
    }

    static class Adapter extends RequestMappingHandlerAdapter {
        Adapter() {
            setMessageConverters(List.of(new ByteArrayHttpMessageConverter(), new MappingJackson2HttpMessageConverter()));
        }
    }
}
