package main

import (
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
	for text, want := range map[string]string{
		"login: root":                                 "login: root",
		"pinned 3 pages at key=1":                     "pinned 3 pages at key=1",
		"password=hunter2 rest":                       `password=REMOVED rest`,
		"PASSWORD: 'hun ter2', rest":                  `PASSWORD: 'REMOVED', rest`,
		`{"password": "hunter2", "a": 1}`:             `{"password": "REMOVED", "a": 1}`,
		`{"a": "password=hunter2", "b": 1}`:           `{"a": "password=REMOVED", "b": 1}`,
		`{"a": "{\"password\": \"hunter2\"}"}`:        `{"a": "{\"password\": \"REMOVED\"}"}`,
		"DB_PASSWD=hunter2":                           `DB_PASSWD=REMOVED`,
		"api-key = hunter2":                           `api-key = REMOVED`,
		"wpa-psk hunter2":                             "wpa-psk hunter2", // no form that can be told from others
		"https://me:hunter2@example.org/x":            "https://REMOVED@example.org/x",
		"mail me@example.org":                         "mail me@example.org",
		"Authorization: Bearer abcdefghijk":           `Authorization: REMOVED`,
		"sent bearer abcdefghijk":                     "sent bearer REMOVED",
		"x AKIAABCDEFGHIJKLMNOP y":                    "x REMOVED y",
		"-----BEGIN PRIVATE KEY-----\nabc\nand so on": "REMOVED",
		"a\n-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nb": "a\nREMOVED\nb",
	} {
		if got := redact(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
		if again := redact(redact(text)); again != redact(text) {
			t.Errorf("%q becomes %q at the second time", text, again)
		}
	}
}

func TestRedactCmdline(t *testing.T) {
	for text, want := range map[string]string{
		"":                                      "",
		"root=/dev/vda1 ro quiet":               "root=/dev/vda1 ro quiet",
		"console=ttyS0 console=tty0 loglevel=7": "console=ttyS0 console=tty0 loglevel=7",
		"ip=10.0.0.1 root=/dev/vda":             "ip=REMOVED root=/dev/vda",
		`a="x y" root=/dev/vda`:                 "a=REMOVED",
		`root="x y" z`:                          "root=REMOVED",
		"ro -- hunter2":                         "ro REMOVED",
	} {
		if got := redactCmdline(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

func TestRedactDefinition(t *testing.T) {
	got, err := redactDefinition("name = \"a\" # hunter2\nluks_key = \"hunter2\"\npasswords = [\"hunter2\"]\n[[disk]]\npassword = \"hunter2\"\n[input]\nkeyboard = \"focus\"\n")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(got, "hunter2") || !strings.Contains(got, "focus") || !strings.Contains(got, "password = 'REMOVED'") {
		t.Errorf("%s", got)
	}
}
