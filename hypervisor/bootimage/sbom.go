package bootimage

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
)

// Component is something that an image was made of: a file, or a Go module in one.
type Component struct {
	Type    string `json:"type"` // "file", "library" or "operating-system"
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	PURL    string `json:"purl,omitempty"`
	Hashes  []Hash `json:"hashes,omitempty"`
}

// Hash is a component's, in hexadecimal digits.
type Hash struct {
	Alg     string `json:"alg"`
	Content string `json:"content"`
}

// FileComponents returns a file as a component, and the Go modules that are in it if it is a Go program.
func FileComponents(name, version string, b []byte) []Component {
	sum := sha256.Sum256(b)
	list := []Component{{Type: "file", Name: name, Version: version, Hashes: []Hash{{"SHA-256", hex.EncodeToString(sum[:])}}}}
	info, err := buildinfo.Read(bytes.NewReader(b))
	if err != nil {
		return list // no Go program
	}
	library := func(path, version string) {
		list = append(list, Component{Type: "library", Name: path, Version: version, PURL: "pkg:golang/" + path + "@" + version})
	}
	library("std", strings.TrimPrefix(info.GoVersion, "go"))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		library(m.Path, m.Version)
	}
	return list
}

// SBOM returns a software bill of materials, in CycloneDX 1.5's JSON. The same component twice is one.
func SBOM(release string, components []Component) ([]byte, error) {
	list := slices.Clone(components)
	key := func(c Component) string { return strings.Join([]string{c.Type, c.Name, c.Version}, "\x00") }
	slices.SortFunc(list, func(a, b Component) int { return strings.Compare(key(a), key(b)) })
	list = slices.CompactFunc(list, func(a, b Component) bool { return key(a) == key(b) })
	type metadata struct {
		Component Component `json:"component"`
	}
	b, err := json.MarshalIndent(struct {
		Format     string      `json:"bomFormat"`
		Spec       string      `json:"specVersion"`
		Version    int         `json:"version"`
		Metadata   metadata    `json:"metadata"`
		Components []Component `json:"components"`
	}{"CycloneDX", "1.5", 1, metadata{Component{Type: "operating-system", Name: "lodge", Version: release}}, list}, "", "  ")
	return append(b, '\n'), err
}
