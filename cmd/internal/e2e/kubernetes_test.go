package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vstun/testdata/testkit"
)

const kubernetesFile = "cmd/director/kubernetes.yaml"

// object is what the tests use of a Kubernetes object.
type object struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Data     map[string]string // of a ConfigMap
	Spec     struct {
		Selector struct{ MatchLabels map[string]string }
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     json.RawMessage
		}
		LoadBalancerClass, ExternalTrafficPolicy string
	}
	text []byte // the whole object as JSON
}

// podSpec is what the tests use of a pod.
type podSpec struct {
	HostNetwork bool
	Containers  []struct {
		Image           string
		Command         []string
		SecurityContext struct {
			ReadOnlyRootFilesystem bool
			Capabilities           struct{ Add, Drop []string }
		}
		LivenessProbe, ReadinessProbe struct{ Exec struct{ Command []string } }
		VolumeMounts                  []struct{ Name, MountPath string }
	}
	Volumes []struct {
		Name      string
		ConfigMap struct{ Name string }
		HostPath  struct{ Path, Type string }
	}
}

// buildManifests builds the command that checks manifests.
func buildManifests(t *testing.T, program string) string {
	t.Helper()
	if out, err := exec.Command("go", "-C", "../../../.ci/tools", "build", "-o", program,
		"./manifests").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}

// checkManifests checks Kubernetes manifests against the API's types, and returns their objects, or the faults.
func checkManifests(t *testing.T, program, file string) (all []object, faults string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(program, file)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Sprintf("%v: %s", err, &stderr)
	}
	for line := range bytes.Lines(stdout.Bytes()) {
		o := object{text: slices.Clone(line)}
		if err := json.Unmarshal(line, &o); err != nil && o.Kind != "Service" { // whose selector has another form
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, o)
	}
	return all, ""
}

// TestManifests: the Kubernetes manifests have the API's types, and fit together. Broken ones are found.
func TestManifests(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(testkit.Root(t), kubernetesFile))
	if err != nil {
		t.Fatal(err)
	}
	program := buildManifests(t, filepath.Join(t.TempDir(), "manifests"))
	file := program + ".yaml"
	check := func(text string) ([]object, string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return checkManifests(t, program, file)
	}
	all, faults := check(string(text))
	if faults != "" {
		t.Fatal(faults)
	}
	for _, c := range []struct{ old, broken, says string }{
		{"readOnlyRootFilesystem:", "readOnlyRootFileSystem:", `unknown field "spec.template.spec.containers[0].` +
			`securityContext.readOnlyRootFileSystem"`},
		{"hostNetwork: true", `hostNetwork: "yes"`, "hostNetwork"},
		{"drop: [ALL]", "drop: ALL", "drop"},
		{"periodSeconds: 10", "periodSeconds: 10s", "periodSeconds"},
		{"kind: DaemonSet", "kind: DaemonSets", "DaemonSets"},
		{"apiVersion: apps/v1", "apiVersion: apps/v2", "apps/v2"},
		{"hostNetwork: true", "hostNetwork: true\n      hostNetwork: true", "already set"},
	} {
		if _, faults := check(strings.Replace(string(text), c.old, c.broken, 1)); !strings.Contains(faults, c.says) {
			t.Errorf("%q: want a fault with %q: %s", c.broken, c.says, faults)
		}
	}
	kinds := map[string]int{}
	for i := range all {
		if kinds[all[i].Kind]++; all[i].Kind == "DaemonSet" {
			mustFitTogether(t, all, &all[i])
		}
	}
	if kinds["DaemonSet"] != 2 || kinds["ConfigMap"] != 2 || kinds["Namespace"] != 1 || kinds["Service"] != 1 {
		t.Errorf("kinds %v", kinds)
	}
}

// pod returns the pod's specification in a DaemonSet.
func (o *object) pod(t *testing.T) (p podSpec) {
	t.Helper()
	if err := json.Unmarshal(o.Spec.Template.Spec, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// mustFitTogether fails the test unless a DaemonSet selects its own pods, has the volumes that it mounts and no more
// rights than the programs need, and its ConfigMap is a configuration without faults.
func mustFitTogether(t *testing.T, all []object, d *object) {
	t.Helper()
	pod := d.pod(t)
	labels, selected := d.Spec.Template.Metadata.Labels, d.Spec.Selector.MatchLabels
	for key, value := range selected {
		if labels[key] != value {
			t.Errorf("%s selects %s=%s, and its pods have %v", d.Metadata.Name, key, value, labels)
		}
	}
	c := pod.Containers[0]
	if len(selected) == 0 || !pod.HostNetwork || !c.SecurityContext.ReadOnlyRootFilesystem ||
		c.Image != "vstun:0.1.0" ||
		!slices.Equal(c.SecurityContext.Capabilities.Add, []string{"NET_ADMIN", "NET_RAW"}) ||
		!slices.Equal(c.SecurityContext.Capabilities.Drop, []string{"ALL"}) ||
		len(c.LivenessProbe.Exec.Command) != 2 || len(c.ReadinessProbe.Exec.Command) != 2 {
		t.Errorf("%s: %+v", d.Metadata.Name, pod)
	}
	mounts := map[string]string{}
	for _, m := range c.VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	for _, v := range pod.Volumes {
		if mounts[v.Name] == "" {
			t.Errorf("%s: volume %s is mounted nowhere", d.Metadata.Name, v.Name)
		}
		delete(mounts, v.Name)
		if v.ConfigMap.Name == "" {
			continue
		}
		i := slices.IndexFunc(all, func(o object) bool {
			return o.Kind == "ConfigMap" && o.Metadata == struct{ Name, Namespace string }{v.ConfigMap.Name,
				d.Metadata.Namespace}
		})
		if i < 0 {
			t.Fatalf("%s: there is no ConfigMap %s", d.Metadata.Name, v.ConfigMap.Name)
		}
		program := c.Command[0]
		if _, err := parseConfig(program, all[i].Data[program+".toml"]); err != nil {
			t.Errorf("ConfigMap %s: %v", v.ConfigMap.Name, err)
		}
	}
	if len(mounts) > 0 {
		t.Errorf("%s mounts %v, and has no such volume", d.Metadata.Name, mounts)
	}
}

// TestKubernetesPods runs the pods of the manifests, by podman, on hosts of their own. A client is served out of them.
func TestKubernetesPods(t *testing.T) {
	t.Parallel()
	needTool(t, "catatonit", "catatonit")
	pod := newPodmanForHosts(t)
	all, faults := checkManifests(t, buildManifests(t, filepath.Join(t.TempDir(), "manifests")),
		filepath.Join(testkit.Root(t), kubernetesFile))
	if faults != "" {
		t.Fatal(faults)
	}
	serveFromHosts(t, pod, func(p *program, dir string) {
		i := slices.IndexFunc(all, func(o object) bool {
			return o.Kind == "DaemonSet" && o.Metadata.Name == "vstun-"+p.name
		})
		config, err := os.ReadFile(p.config)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
			"metadata": map[string]string{"name": "vstun-" + p.name},
			"data":     map[string]string{p.name + ".toml": string(config)}})
		if err != nil {
			t.Fatal(err)
		}
		spec := replaceAll(t, string(all[i].Spec.Template.Spec), map[string]string{
			`"path":"/run/vstun"`:   fmt.Sprintf(`"path":%q`, dir),
			`"path":"/dev/net/tun"`: fmt.Sprintf(`"path":%q`, pod.tun)})
		file := dir + ".yaml"
		if err := os.WriteFile(file, fmt.Appendf(nil, "%s\n---\n{\"apiVersion\":\"v1\",\"kind\":\"Pod\","+
			"\"metadata\":{\"name\":\"vstun-%s\"},\"spec\":%s}\n", text, p.name, spec), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := run(t, p.host, pod.command("kube", "play", file)); got.code != 0 {
			t.Fatalf("podman kube play: exit status %d\n%s%s\n%s", got.code, got.stdout, got.stderr, spec)
		}
		pod.follow(p, fmt.Sprintf("vstun-%s-%s", p.name, p.name))
		probe := all[i].pod(t).Containers[0].LivenessProbe.Exec.Command
		if got := run(t, p.host, pod.command(append([]string{"exec", fmt.Sprintf("vstun-%s-%s", p.name, p.name)},
			probe...)...)); got.code != 0 {
			t.Errorf("the probe %v: %+v", probe, got)
		}
	})
}
