package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// removed stands where something was that may be a secret.
const removed = "REMOVED"

// secretName is a name of what is secret: of a key, a parameter or a variable.
const secretName = `[\w.-]*(?:passw|passphrase|passwd|secret|token|credential|api_?-?key|private_?-?key|psk|\bpin\b|auth|cookie|session)[\w.-]*`

// named is such a name and what stands between it and its value.
const named = `(?i)(\b` + secretName + `\\?"?\s*[=:]\s*)`

// What is taken out of texts.
var secrets = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`), removed},
	{regexp.MustCompile(named + `(\\?")[^"\n]*"`), `${1}${2}` + removed + `${2}`},
	{regexp.MustCompile(named + `'[^'\n]*'`), `${1}'` + removed + `'`},
	{regexp.MustCompile(named + `(?:(?:bearer|basic)\s+)?[^\s"',\\][^\s"',]*`), `${1}` + removed},
	{regexp.MustCompile(`(?i)\b(bearer|basic)\s+[\w+/=.~-]{8,}`), `${1} ` + removed},
	{regexp.MustCompile(`([a-z][a-z0-9+.-]*://)[^/\s@"]+@`), `${1}` + removed + `@`},
	{regexp.MustCompile(`\b(?:eyJ[\w-]+\.[\w-]+\.[\w-]*|AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|xox[a-z]-[\w-]{10,}|AGE-SECRET-KEY-\w+)`), removed},
}

// redact takes what may be secret out of a text: private keys, what follows a name such as "password=", users and passwords in
// URLs, and tokens of well-known forms. It cannot know what else is secret.
func redact(text string) string {
	for _, s := range secrets {
		text = s.pattern.ReplaceAllString(text, s.with)
	}
	return text
}

// harmlessParameters are those of a kernel's command line whose values are kept.
var harmlessParameters = map[string]bool{
	"acpi": true, "console": true, "earlycon": true, "earlyprintk": true, "init": true, "intel_iommu": true, "amd_iommu": true, "iommu": true,
	"loglevel": true, "mem": true, "maxcpus": true, "nosmp": true, "panic": true, "pci": true, "rdinit": true, "reboot": true, "root": true,
	"rootdelay": true, "rootflags": true, "rootfstype": true, "systemd.unit": true, "video": true, "clocksource": true, "tsc": true,
	"BOOT_IMAGE": true, "mitigations": true, "systemd.unified_cgroup_hierarchy": true, "lsm": true, "cgroup_enable": true,
	"cgroup_disable": true,
}

// redactCmdline leaves the values of a kernel's parameters out, but for those that are known to tell nothing.
func redactCmdline(text string) string {
	words := strings.Fields(text)
	for i, w := range words {
		if name, value, ok := strings.Cut(w, "="); ok && (!harmlessParameters[name] || strings.ContainsAny(value, `"'`)) {
			words[i] = name + "=" + removed
			if strings.ContainsAny(value, `"'`) { // it may go on in the next words
				words = words[:i+1]
				break
			}
		} else if strings.ContainsAny(w, `"'`) || w == "--" { // what is for init
			words = append(words[:i], removed)
			break
		}
	}
	return strings.Join(words, " ")
}

// redactDefinition returns a definition, in TOML, without comments and without what may be secret.
func redactDefinition(text string) (string, error) {
	var v map[string]any
	if err := toml.Unmarshal([]byte(text), &v); err != nil {
		return "", fmt.Errorf("not valid TOML: %w", err)
	}
	clean(v)
	b, err := toml.Marshal(v)
	return string(b), err
}

var secretKey = regexp.MustCompile(`(?i)^(` + secretName + `|(.*_)?key)$`)

// clean replaces what may be secret in what v holds.
func clean(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			s, isString := e.(string)
			switch {
			case k == "cmdline" && isString:
				v[k] = redactCmdline(s)
			case secretKey.MatchString(k):
				v[k] = removed
			default:
				clean(e)
			}
		}
	case []any:
		for _, e := range v {
			clean(e)
		}
	}
}
