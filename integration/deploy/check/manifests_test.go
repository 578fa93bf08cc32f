// Package check has the tests of what is deployed: manifests, unit and image. It is a module of its own, so that nobody who builds
// the gateway has to load the types of Kubernetes.
package check

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// manifests is what a kustomization comes to.
type manifests struct {
	deployment *apps.Deployment
	service    *core.Service
	config     *core.ConfigMap
	scaler     *autoscaling.HorizontalPodAutoscaler // in the fleet
	disruption *policy.PodDisruptionBudget          // in the fleet
	policies   []*networking.NetworkPolicy
}

// build renders a kustomization and reads it strictly: an unknown field is an error.
func build(folder string) (*manifests, error) {
	rendered, err := render(folder)
	if err != nil {
		return nil, err
	}
	m := new(manifests)
	for _, resource := range rendered.Resources() {
		text, err := resource.AsYAML()
		if err != nil {
			return nil, err
		}
		object, _, err := decoder.Decode(text, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", resource.CurId(), err)
		}
		switch object := object.(type) {
		case *apps.Deployment:
			m.deployment = object
		case *core.Service:
			m.service = object
		case *core.ConfigMap:
			m.config = object
		case *autoscaling.HorizontalPodAutoscaler:
			m.scaler = object
		case *policy.PodDisruptionBudget:
			m.disruption = object
		case *networking.NetworkPolicy:
			m.policies = append(m.policies, object)
		default:
			return nil, fmt.Errorf("%s: nothing here looks at it", resource.CurId())
		}
	}
	if m.deployment == nil || m.service == nil || m.config == nil || len(m.policies) == 0 {
		return nil, errors.New("a deployment, a service, a config map or a network policy is missing")
	}
	return m, nil
}

// render does as kubectl does.
func render(folder string) (resmap.ResMap, error) {
	options := krusty.MakeDefaultOptions()
	options.Reorder = krusty.ReorderOptionLegacy
	return krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), folder)
}

var decoder = func() runtime.Decoder {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		apps.AddToScheme, autoscaling.AddToScheme, core.AddToScheme, networking.AddToScheme, policy.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}()

func (m *manifests) pod() *core.PodSpec { return &m.deployment.Spec.Template.Spec }

// containers are all of the pod, the app beside the gateway too.
func (m *manifests) containers() []core.Container {
	return slices.Concat(m.pod().InitContainers, m.pod().Containers)
}

func (m *manifests) gateway() *core.Container {
	for i := range m.pod().Containers {
		if c := &m.pod().Containers[i]; c.Name == "gateway" {
			return c
		}
	}
	return new(core.Container)
}

// complaints collects what is wrong.
type complaints []string

func (c *complaints) unless(ok bool, format string, args ...any) {
	if !ok {
		*c = append(*c, fmt.Sprintf(format, args...))
	}
}

// examine returns what is wrong with a kustomization.
func examine(t *testing.T, folder string) (wrong complaints) {
	t.Helper()
	m, err := build(folder)
	if err != nil {
		return complaints{err.Error()}
	}
	m.examineLabels(&wrong, folder)
	m.examineSecurity(&wrong)
	m.examineVolumes(&wrong)
	m.examineNetwork(&wrong)
	config, err := adapt(t, m.config.Data["Caddyfile"], m.environment())
	if err != nil {
		wrong.unless(false, "the Caddyfile: %v", err)
		return wrong
	}
	wrong.unless(config.Admin.Config.Persist != nil && !*config.Admin.Config.Persist, "Caddy would write its configuration to a root that is read-only (want persist_config off)")
	m.examinePorts(&wrong, config)
	m.examineShutdown(&wrong, config)
	for _, server := range config.Apps.HTTP.Servers {
		wrong.unless(server.TrustedProxiesStrict == 1, "the client's address is what the client says itself (want trusted_proxies_strict)")
	}
	return wrong
}

func (m *manifests) examineLabels(wrong *complaints, folder string) {
	selecting := func(what string, s *meta.LabelSelector) {
		wrong.unless(selects(s, m), "%s doesn't select the gateway's pods", what)
	}
	selecting("the deployment", m.deployment.Spec.Selector)
	selecting("the service", &meta.LabelSelector{MatchLabels: m.service.Spec.Selector})
	if m.disruption != nil {
		selecting("the disruption budget", m.disruption.Spec.Selector)
		most := m.disruption.Spec.MaxUnavailable
		wrong.unless(m.disruption.Spec.MinAvailable == nil && most != nil && most.IntValue() > 0, "the disruption budget keeps a node with the last gateway from being drained")
	}
	if m.scaler != nil {
		target := m.scaler.Spec.ScaleTargetRef
		wrong.unless(target.Kind == "Deployment" && target.Name == m.deployment.Name && target.APIVersion == "apps/v1", "the autoscaler's target isn't the deployment")
		rules, err := os.ReadFile(filepath.Join(folder, "prometheus-adapter.yaml"))
		for _, metric := range m.scaler.Spec.Metrics {
			wrong.unless(metric.Pods == nil || err == nil && strings.Contains(string(rules), "'"+metric.Pods.Metric.Name+"{"),
				"the adapter has no rule for a metric of the autoscaler, %v", err)
		}
		wrong.unless(m.deployment.Spec.Replicas == nil, "each apply would undo what the autoscaler did (want no replicas)")
	}
}

func (m *manifests) examineSecurity(wrong *complaints) {
	pod := m.pod()
	s := pod.SecurityContext
	wrong.unless(s != nil && s.RunAsNonRoot != nil && *s.RunAsNonRoot && s.RunAsUser != nil && *s.RunAsUser > 0, "the pod may run as root")
	wrong.unless(s != nil && s.SeccompProfile != nil && s.SeccompProfile.Type == core.SeccompProfileTypeRuntimeDefault, "the pod has no seccomp profile")
	wrong.unless(pod.AutomountServiceAccountToken != nil && !*pod.AutomountServiceAccountToken, "the pod gets a token of Kubernetes")
	wrong.unless(!pod.HostNetwork && !pod.HostPID && !pod.HostIPC, "the pod shares something with its node")
	for _, c := range m.containers() {
		s := c.SecurityContext
		wrong.unless(s != nil && s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation, "%s may get privileges", c.Name)
		wrong.unless(s != nil && s.Capabilities != nil && slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}) && len(s.Capabilities.Add) == 0,
			"%s has capabilities", c.Name)
		r := c.Resources
		wrong.unless(!r.Requests.Cpu().IsZero() && !r.Requests.Memory().IsZero() && r.Limits.Memory().Cmp(*r.Requests.Memory()) >= 0,
			"%s lacks resources", c.Name)
	}
	s2 := m.gateway().SecurityContext
	wrong.unless(s2 != nil && s2.ReadOnlyRootFilesystem != nil && *s2.ReadOnlyRootFilesystem, "the gateway's root can be written to")
}

func (m *manifests) examineVolumes(wrong *complaints) {
	volumes := map[string]core.Volume{}
	for _, v := range m.pod().Volumes {
		volumes[v.Name] = v
	}
	for _, mount := range m.gateway().VolumeMounts {
		v, known := volumes[mount.Name]
		wrong.unless(known, "the volume %s is missing", mount.Name)
		wrong.unless(v.ConfigMap == nil || v.ConfigMap.Name == m.config.Name, "the volume %s is another config map than %s", mount.Name, m.config.Name)
		wrong.unless(v.Secret == nil || mount.ReadOnly && v.Secret.DefaultMode != nil && *v.Secret.DefaultMode&0o007 == 0, "everybody may read the secret %s", mount.Name)
	}
	for _, file := range secretFile.FindAllStringSubmatch(m.config.Data["Caddyfile"], -1) {
		mounted := slices.ContainsFunc(m.gateway().VolumeMounts, func(mount core.VolumeMount) bool {
			return volumes[mount.Name].Secret != nil && filepath.Dir(file[1]) == mount.MountPath
		})
		wrong.unless(mounted, "the secret %s is mounted nowhere", file[1])
	}
	for _, e := range m.gateway().Env {
		secret := strings.Contains(e.Name, "PASSWORD") || strings.Contains(e.Name, "TOKEN")
		wrong.unless(!secret, "%s is a secret in the environment", e.Name)
	}
}

var secretFile = regexp.MustCompile(`\{file\.([^}]+)\}`)

func (m *manifests) examineNetwork(wrong *complaints) {
	pod := labels.Set(m.deployment.Spec.Template.Labels)
	guarded := false
	for _, p := range m.policies {
		selector, err := meta.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if wrong.unless(err == nil && !selector.Empty(), "the network policy %s is for every pod of the namespace", p.Name); err != nil {
			continue
		}
		guarded = guarded || selector.Matches(pod)
		for _, rule := range p.Spec.Ingress {
			wrong.unless(len(rule.From) > 0 && len(rule.Ports) > 0, "the network policy %s lets anybody in", p.Name)
			for _, port := range rule.Ports {
				_, known := m.port(*port.Port)
				wrong.unless(!selector.Matches(pod) || known, "the network policy %s is for the port %s, which the gateway hasn't", p.Name, port.Port)
				wrong.unless(!selector.Matches(pod) || port.Port.String() != "3000", "the network policy %s opens the app", p.Name)
			}
		}
		for _, rule := range p.Spec.Egress {
			wrong.unless(len(rule.To) > 0 && len(rule.Ports) > 0, "the network policy %s lets the gateway go anywhere", p.Name)
		}
	}
	wrong.unless(guarded, "no network policy guards the gateway")
	m.examineWays(wrong)
}

// examineWays looks whether the gateway gets to all that it needs, where a network policy says where it may go.
func (m *manifests) examineWays(wrong *complaints) {
	env := m.environment()
	for _, p := range m.policies {
		selector, err := meta.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err != nil || !selector.Matches(labels.Set(m.deployment.Spec.Template.Labels)) || !slices.Contains(p.Spec.PolicyTypes, networking.PolicyTypeEgress) {
			continue
		}
		wrong.unless(goes(p, core.ProtocolUDP, "53") && goes(p, core.ProtocolTCP, "53"), "the network policy %s keeps the gateway from asking for names", p.Name)
		for _, name := range []string{"OZ_URL", "APP_URL", "REDIS_ADDRESS"} {
			if env[name] != "" {
				wrong.unless(goes(p, core.ProtocolTCP, portOf(env[name])), "the network policy %s keeps the gateway from %s", p.Name, env[name])
			}
		}
	}
	app, err := url.Parse(env["APP_URL"])
	if err != nil || app.Hostname() == "127.0.0.1" {
		return
	}
	lets := slices.ContainsFunc(m.policies, func(p *networking.NetworkPolicy) bool {
		return p.Name == app.Hostname() && len(p.Spec.Ingress) == 1 && len(p.Spec.Ingress[0].From) == 1 && selects(p.Spec.Ingress[0].From[0].PodSelector, m) &&
			len(p.Spec.Ingress[0].Ports) == 1 && p.Spec.Ingress[0].Ports[0].Port.String() == app.Port()
	})
	wrong.unless(lets, "no network policy lets the gateway, and nothing else, reach the app at %s", app)
}

// goes reports whether a policy lets its pods connect to a port somewhere.
func goes(p *networking.NetworkPolicy, protocol core.Protocol, port string) bool {
	return slices.ContainsFunc(p.Spec.Egress, func(rule networking.NetworkPolicyEgressRule) bool {
		return slices.ContainsFunc(rule.Ports, func(to networking.NetworkPolicyPort) bool {
			is := core.ProtocolTCP
			if to.Protocol != nil {
				is = *to.Protocol
			}
			return is == protocol && to.Port.String() == port
		})
	})
}

// portOf returns the port of a URL or an address.
func portOf(address string) string {
	if at := strings.LastIndexByte(address, ':'); at >= 0 && !strings.HasPrefix(address[at:], "://") {
		return address[at+1:]
	}
	return "443" // of https
}

// selects reports whether a selector is for the gateway's pods.
func selects(s *meta.LabelSelector, m *manifests) bool {
	selector, err := meta.LabelSelectorAsSelector(s)
	return err == nil && !selector.Empty() && selector.Matches(labels.Set(m.deployment.Spec.Template.Labels))
}

// port finds a port of the gateway by number or name.
func (m *manifests) port(wanted intstr.IntOrString) (number int, known bool) {
	for _, p := range m.gateway().Ports {
		if wanted.String() == p.Name || wanted.IntValue() == int(p.ContainerPort) {
			return int(p.ContainerPort), true
		}
	}
	return 0, false
}

// probes are those of all containers; each goes to the gateway.
func (m *manifests) probes() (found []*core.HTTPGetAction) {
	for _, c := range m.containers() {
		for _, p := range []*core.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if p != nil {
				found = append(found, p.HTTPGet)
			}
		}
	}
	return found
}

const readyPath = "/oz_instant/ready"

func (m *manifests) examinePorts(wrong *complaints, config *caddyConfig) {
	for _, p := range m.gateway().Ports {
		wrong.unless(config.listens(int(p.ContainerPort)), "Caddy doesn't listen on %s, %d", p.Name, p.ContainerPort)
	}
	for _, p := range m.service.Spec.Ports {
		_, known := m.port(p.TargetPort)
		wrong.unless(known, "the service's port %s leads nowhere", p.TargetPort.String())
	}
	for _, probe := range m.probes() {
		if probe == nil {
			wrong.unless(false, "a probe is none by HTTP")
			continue
		}
		number, known := m.port(probe.Port)
		wrong.unless(known && config.serves(number, probe.Path), "the probe of %s on port %s meets nothing", probe.Path, probe.Port.String())
	}
	g := m.gateway()
	wrong.unless(isReady(g.StartupProbe) && isReady(g.ReadinessProbe), "startup and readiness are not those of %s", readyPath)
	wrong.unless(g.LivenessProbe != nil && !isReady(g.LivenessProbe), "a gateway that shuts down would be killed: it isn't ready")
	wrong.unless(strings.HasPrefix(m.environment()["CADDY_ADMIN"], "unix/"), "the app beside the gateway reaches the admin endpoint")
	for _, c := range m.containers() {
		for _, p := range []*core.Probe{c.ReadinessProbe, c.LivenessProbe} {
			wrong.unless(p == nil || p.TimeoutSeconds >= patience && p.FailureThreshold != 1,
				"%s is taken out of service when it is busy for a moment (want timeoutSeconds of %d or more, and more than one failure)", c.Name, patience)
		}
	}
	scraped, known := m.port(intstr.Parse(m.deployment.Spec.Template.Annotations["prometheus.io/port"]))
	wrong.unless(known && config.serves(scraped, "/metrics"), "Prometheus meets nothing")
}

// patience is what a probe must have with a gateway that has much to do, in seconds.
const patience = 5

func isReady(p *core.Probe) bool { return p != nil && p.HTTPGet != nil && p.HTTPGet.Path == readyPath }

// examineShutdown compares the times by which things end with each other.
func (m *manifests) examineShutdown(wrong *complaints, config *caddyConfig) {
	config.examineShutdown(wrong)
	stop := m.gateway().Lifecycle
	if stop == nil || stop.PreStop == nil || stop.PreStop.Sleep == nil {
		wrong.unless(false, "the gateway ends while requests are still sent to it (want preStop sleep)")
		return
	}
	needed := time.Duration(stop.PreStop.Sleep.Seconds)*time.Second + config.ending()
	var grace int64 = 30 // of Kubernetes
	if g := m.pod().TerminationGracePeriodSeconds; g != nil {
		grace = *g
	}
	wrong.unless(time.Duration(grace)*time.Second >= needed+spare, "the pod is killed after %d s, and the gateway needs %v and %v to spare", grace, needed, spare)
	for _, c := range m.pod().InitContainers {
		wrong.unless(c.RestartPolicy != nil && *c.RestartPolicy == core.ContainerRestartPolicyAlways, "%s is no sidecar", c.Name)
	}
	wrong.unless(len(m.pod().Containers) == 1, "a container beside the gateway ends with it, and not after it (want it among initContainers, with restartPolicy Always)")
}

// environment is the gateway's.
func (m *manifests) environment() map[string]string {
	env := map[string]string{}
	for _, e := range m.gateway().Env {
		env[e.Name] = e.Value
	}
	return env
}

var folders = []string{"base", "fleet"}

// TestManifests promises that each kustomization renders, is valid, and fits the Caddyfile that it brings.
func TestManifests(t *testing.T) {
	for _, folder := range folders {
		for _, wrong := range examine(t, filepath.Join("..", "kubernetes", folder)) {
			t.Errorf("%s: %s", folder, wrong)
		}
	}
}

// TestManifestsBroken promises that the checks notice what they are for.
func TestManifestsBroken(t *testing.T) {
	for _, row := range []struct{ file, old, new, notices string }{
		{"base/deployment.yaml", "readOnlyRootFilesystem", "readonlyRootFilesystem", `unknown field "spec.template.spec.containers[0].securityContext.readonlyRootFilesystem"`},
		{"base/deployment.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "root can be written"},
		{"base/deployment.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "as root"},
		{"base/deployment.yaml", "drop: [ALL]", "drop: [CHOWN]", "has capabilities"},
		{"base/deployment.yaml", "RuntimeDefault", "Unconfined", "seccomp"},
		{"base/deployment.yaml", "automountServiceAccountToken: false", "automountServiceAccountToken: true", "token"},
		{"base/deployment.yaml", "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "privileges"},
		{"base/deployment.yaml", "memory: 512Mi", "memory: 100Mi", "lacks resources"},
		{"base/deployment.yaml", "terminationGracePeriodSeconds: 130", "terminationGracePeriodSeconds: 100", "is killed"},
		{"base/deployment.yaml", "              sleep:\n                seconds: 5", "              sleep:\n                seconds: 50", "is killed"},
		{"base/deployment.yaml", "path: /livez", "path: /oz_instant/ready", "would be killed"},
		{"base/deployment.yaml", "path: /oz_instant/ready", "path: /ready", "meets nothing"},
		{"base/deployment.yaml", "port: ops", "port: opps", "meets nothing"},
		{"base/deployment.yaml", "containerPort: 8081", "containerPort: 8082", "doesn't listen"},
		{"base/deployment.yaml", "unix//run/caddy/admin.sock", "localhost:2019", "admin endpoint"},
		{"base/deployment.yaml", "mountPath: /run/secrets/oz_instant", "mountPath: /run/secrets/oz", "mounted nowhere"},
		{"base/deployment.yaml", "defaultMode: 0440", "defaultMode: 0444", "everybody may read"},
		{"base/deployment.yaml", "          restartPolicy: Always\n", "", "no sidecar"},
		{"base/deployment.yaml", `prometheus.io/port: "8081"`, `prometheus.io/port: "9090"`, "Prometheus meets nothing"},
		{"base/deployment.yaml", "name: OZ_URL", "name: OZ", "Caddyfile"},
		{"base/deployment.yaml", "path: /oz_instant/ready\n            periodSeconds: 2\n            timeoutSeconds: 5", "path: /oz_instant/ready\n            periodSeconds: 2", "busy for a moment"},
		{"base/deployment.yaml", "path: /oz_instant/ready\n            periodSeconds: 2\n", "path: /oz_instant/ready\n            periodSeconds: 2\n            failureThreshold: 1\n", "busy for a moment"},
		{"base/service.yaml", "targetPort: http", "targetPort: https", "leads nowhere"},
		{"base/service.yaml", "app.kubernetes.io/name: oz-instant", "app.kubernetes.io/name: oz", "the service doesn't select"},
		{"base/networkpolicy.yaml", "    matchLabels:\n      app.kubernetes.io/name: oz-instant", "    matchLabels: {}", "every pod"},
		{"base/networkpolicy.yaml", "- port: http", "- port: 3000", "opens the app"},
		{"base/Caddyfile", "\t\ttrusted_proxies_strict\n", "", "says itself"},
		{"base/Caddyfile", "grace_period 110s", "grace_period 90s", "grace_period"},
		{"base/Caddyfile", "shutdown_delay 5s", "shutdown_delay 1s", "shutdown_delay"},
		{"base/Caddyfile", "shutdown_delay 5s", "shutdown_delays 5s", "Caddyfile"},
		{"base/Caddyfile", "\tpersist_config off\n", "", "persist_config"},
		{"base/Caddyfile", "/oz_instant/ready\n", "/ready\n", "meets nothing"},
		{"base/Caddyfile", "\tservers {", "  servers {", "isn't formatted"},
		{"fleet/Caddyfile", "grace_period 110s", "grace_period 140s", "is killed"},
		{"fleet/deployment.yaml", "REDIS_ADDRESS", "REDIS", "Caddyfile"},
		{"fleet/autoscaler.yaml", "name: oz-instant\n  min", "name: oz\n  min", "target"},
		{"fleet/autoscaler.yaml", "caddy_oz_instant_queued", "caddy_oz_instant_in_flight", "adapter"},
		{"fleet/prometheus-adapter.yaml", "caddy_oz_instant_memory_bytes{", "caddy_oz_instant_memory{", "adapter"},
		{"fleet/disruption.yaml", "app.kubernetes.io/name: oz-instant", "app.kubernetes.io/name: oz", "disruption budget doesn't select"},
		{"fleet/disruption.yaml", "maxUnavailable: 1", "minAvailable: 1", "from being drained"},
		{"fleet/networkpolicy.yaml", "- port: 53\n          protocol: UDP\n        ", "", "asking for names"},
		{"fleet/networkpolicy.yaml", "- port: 443", "- port: 8443", "from https://oz.internal"},
		{"fleet/networkpolicy.yaml", "- port: 6379", "- port: 6380", "from redis.internal:6379"},
		{"fleet/networkpolicy.yaml", "- port: 3000", "- port: 3001", "from http://app:3000"},
		{"fleet/app-networkpolicy.yaml", "- port: 3000", "- port: 3001", "reach the app"},
		{"fleet/app-networkpolicy.yaml", "              app.kubernetes.io/name: oz-instant", "              app.kubernetes.io/name: oz", "reach the app"},
		{"fleet/networkpolicy.yaml", "cidr: 10.20.0.0/24 # Oz", "cider: 10.20.0.0/24", "unknown field"},
		{"fleet/networkpolicy.yaml", "    - to:\n        - ipBlock:\n            cidr: 10.20.0.0/24 # Oz\n      ports:", "    - ports:", "go anywhere"},
	} {
		t.Run(row.file+" "+strings.TrimSpace(row.new), func(t *testing.T) {
			t.Parallel()
			folder := t.TempDir()
			copyFolder(t, filepath.Join("..", "kubernetes"), folder)
			replace(t, filepath.Join(folder, row.file), row.old, row.new)
			wrong := examine(t, filepath.Join(folder, filepath.Dir(row.file)))
			if !slices.ContainsFunc(wrong, func(text string) bool { return strings.Contains(text, row.notices) }) {
				t.Errorf("%q was not noticed, but %q", row.notices, wrong)
			}
		})
	}
}

// TestKubectl promises that kubectl renders the same. One older than kustomize 5 (kubectl 1.27) isn't asked.
func TestKubectl(t *testing.T) {
	version, err := exec.Command("kubectl", "version", "--client").CombinedOutput()
	if err != nil || !strings.Contains(string(version), "Kustomize Version: v5") {
		t.Skipf("there is no kubectl with kustomize 5: %v\n%s", err, version)
	}
	for _, folder := range folders {
		folder = filepath.Join("..", "kubernetes", folder)
		rendered, err := render(folder)
		check(t, err)
		want, err := rendered.AsYaml()
		check(t, err)
		got, err := exec.Command("kubectl", "kustomize", folder).CombinedOutput()
		if err != nil || string(got) != string(want) {
			t.Errorf("kubectl kustomize %s: %v\n%s", folder, err, got)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	check(t, os.CopyFS(to, os.DirFS(from)))
}

// replace changes a text in a file, which must have it, wherever it stands.
func replace(t *testing.T, file, from, to string) {
	t.Helper()
	text, err := os.ReadFile(file)
	check(t, err)
	if !strings.Contains(string(text), from) {
		t.Fatalf("%s has no %q", file, from)
	}
	check(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(text), from, to)), 0o600))
}
