package format

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"path"
	"strconv"
	"strings"
	"text/template"
)

// Machine is what an OVF description says of a machine (DMTF DSP0243), as far as one can be defined from it.
type Machine struct {
	Name     string
	OS       string // in words, such as "Debian GNU/Linux 12 (64-bit)"; may be empty
	CPUs     int    // 0: not said
	Memory   int64  // bytes; 0: not said
	Firmware string // "bios", "efi" or, if it is not said, ""
	Disks    []OVFDisk
	NICs     []OVFNIC
}

// OVFDisk is a disk of a machine.
type OVFDisk struct {
	ID       string
	File     string // in the archive; empty of a disk that has no content yet
	FileSize int64  // bytes; 0: not said
	Capacity int64  // bytes; 0: not said
}

// OVFNIC is a network card of a machine.
type OVFNIC struct {
	Network string // its name in the description
	Model   string // such as "E1000"; may be empty
	MAC     string // may be empty
}

const (
	ovfDisksMax = 16
	ovfNICsMax  = 16
	ovfTextMax  = 256 // bytes of a name
)

// What hardware items are: CIM_ResourceAllocationSettingData.ResourceType.
const (
	ovfCPU    = 3
	ovfMemory = 4
	ovfNIC    = 10
	ovfDisk   = 17
)

type ovfEnvelope struct {
	Files []struct {
		ID          string `xml:"id,attr"`
		Href        string `xml:"href,attr"`
		Size        string `xml:"size,attr"`
		Compression string `xml:"compression,attr"`
		Chunk       string `xml:"chunkSize,attr"`
	} `xml:"References>File"`
	Disks []struct {
		ID       string `xml:"diskId,attr"`
		File     string `xml:"fileRef,attr"`
		Capacity string `xml:"capacity,attr"`
		Units    string `xml:"capacityAllocationUnits,attr"`
		Parent   string `xml:"parentRef,attr"`
	} `xml:"DiskSection>Disk"`
	Systems    []ovfSystem `xml:"VirtualSystem"`
	Collection []struct{}  `xml:"VirtualSystemCollection"`
}

type ovfSystem struct {
	ID   string `xml:"id,attr"`
	Name string `xml:"Name"`
	OS   string `xml:"OperatingSystemSection>Description"`
	Item []struct {
		Type     string   `xml:"ResourceType"`
		Subtype  string   `xml:"ResourceSubType"`
		Quantity string   `xml:"VirtualQuantity"`
		Units    string   `xml:"AllocationUnits"`
		Host     []string `xml:"HostResource"`
		Network  string   `xml:"Connection"`
		Address  string   `xml:"Address"`
	} `xml:"VirtualHardwareSection>Item"`
	Config []struct {
		Key   string `xml:"key,attr"`
		Value string `xml:"value,attr"`
	} `xml:"VirtualHardwareSection>Config"`
}

// ParseOVF reads a description.
func ParseOVF(text []byte) (*Machine, error) {
	var e ovfEnvelope
	if err := xml.Unmarshal(text, &e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if len(e.Systems) != 1 || len(e.Collection) > 0 {
		return nil, fmt.Errorf("%w: it describes %d machines or a collection of them: import them one by one", ErrUnsupported, len(e.Systems))
	}
	s := e.Systems[0]
	m := &Machine{Name: cut(s.Name), OS: cut(s.OS)}
	if m.Name == "" {
		m.Name = cut(s.ID)
	}
	for _, c := range s.Config {
		if f := strings.ToLower(c.Value); c.Key == "firmware" && (f == "bios" || f == "efi") {
			m.Firmware = f
		}
	}
	for _, item := range s.Item {
		switch strings.TrimSpace(item.Type) {
		case strconv.Itoa(ovfCPU):
			n, err := strconv.Atoi(strings.TrimSpace(item.Quantity))
			if err != nil || n < 1 || n > 1<<16 {
				return nil, fmt.Errorf("%w: %q CPUs", ErrDamaged, cut(item.Quantity))
			}
			m.CPUs = n
		case strconv.Itoa(ovfMemory):
			n, err := ovfBytes(item.Quantity, item.Units, 20)
			if err != nil {
				return nil, fmt.Errorf("memory: %w", err)
			}
			m.Memory = n
		case strconv.Itoa(ovfNIC):
			if len(m.NICs) == ovfNICsMax {
				return nil, fmt.Errorf("%w: more than %d network cards", ErrUnsupported, ovfNICsMax)
			}
			m.NICs = append(m.NICs, OVFNIC{Network: cut(item.Network), Model: cut(item.Subtype), MAC: cut(item.Address)})
		case strconv.Itoa(ovfDisk):
			if err := m.addDisk(&e, item.Host); err != nil {
				return nil, err
			}
		}
	}
	return m, nil
}

// addDisk adds the disk that a hardware item names as "ovf:/disk/ID".
func (m *Machine) addDisk(e *ovfEnvelope, host []string) error {
	if len(host) != 1 {
		return fmt.Errorf("%w: a disk that is in %d places", ErrDamaged, len(host))
	}
	if len(m.Disks) == ovfDisksMax {
		return fmt.Errorf("%w: more than %d disks", ErrUnsupported, ovfDisksMax)
	}
	id := path.Base(strings.TrimSpace(host[0]))
	for _, d := range e.Disks {
		if d.ID != id {
			continue
		}
		if d.Parent != "" {
			return fmt.Errorf("%w: disk %s builds on another one", ErrUnsupported, cut(id))
		}
		disk := OVFDisk{ID: cut(id)}
		if d.Capacity != "" {
			var err error
			if disk.Capacity, err = ovfBytes(d.Capacity, d.Units, 0); err != nil {
				return fmt.Errorf("disk %s: capacity: %w", cut(id), err)
			}
		}
		if d.File != "" {
			if err := disk.findFile(e, d.File); err != nil {
				return fmt.Errorf("disk %s: %w", cut(id), err)
			}
		}
		m.Disks = append(m.Disks, disk)
		return nil
	}
	return fmt.Errorf("%w: there is no disk %q", ErrDamaged, cut(id))
}

func (d *OVFDisk) findFile(e *ovfEnvelope, ref string) error {
	for _, f := range e.Files {
		if f.ID != ref {
			continue
		}
		if f.Href == "" || f.Href != path.Base(path.Clean(f.Href)) || len(f.Href) > ovfTextMax {
			return fmt.Errorf("%w: its file %q is not in the archive", ErrUnsupported, cut(f.Href))
		}
		if f.Chunk != "" {
			return fmt.Errorf("%w: it is cut into pieces", ErrUnsupported)
		}
		d.File = f.Href
		d.FileSize, _ = strconv.ParseInt(f.Size, 10, 64) // for information
		return nil
	}
	return fmt.Errorf("%w: there is no file %q", ErrDamaged, cut(ref))
}

// ovfBytes returns n units in bytes. Units are "byte * 2^20", or a word of version 0.9; without any they are 2^shift bytes.
func ovfBytes(n, units string, shift uint) (int64, error) {
	words := map[string]uint{"byte": 0, "bytes": 0, "kilobytes": 10, "megabytes": 20, "gigabytes": 30, "terabytes": 40}
	u := strings.ReplaceAll(strings.ToLower(units), " ", "")
	if s, ok := words[u]; ok {
		shift = s
	} else if exp, ok := strings.CutPrefix(u, "byte*2^"); ok {
		s, err := strconv.ParseUint(exp, 10, 6)
		if err != nil {
			return 0, fmt.Errorf("%w: units of %q", ErrDamaged, cut(units))
		}
		shift = uint(s)
	} else if u != "" {
		return 0, fmt.Errorf("%w: units of %q", ErrUnsupported, cut(units))
	}
	v, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
	if err != nil || v < 0 || v > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%w: %q %s", ErrDamaged, cut(n), cut(units))
	}
	return v << shift, nil
}

// cut bounds a text of the description.
func cut(s string) string {
	s = strings.TrimSpace(s)
	return strings.ToValidUTF8(s[:min(len(s), ovfTextMax)], "")
}

// OVF returns the description of m, whose disks have files.
func (m *Machine) OVF() ([]byte, error) {
	var b bytes.Buffer
	if err := ovfTemplate.Execute(&b, m); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

var ovfTemplate = template.Must(template.New("ovf").Funcs(template.FuncMap{
	"text": func(s string) (string, error) {
		var b strings.Builder
		err := xml.EscapeText(&b, []byte(s))
		return b.String(), err
	},
	"add": func(a, b int) int { return a + b },
	"mib": func(n int64) int64 { return n >> 20 },
}).Parse(`<?xml version="1.0" encoding="UTF-8"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
  xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
{{- range $i, $d := .Disks}}
    <File ovf:id="file{{add $i 1}}" ovf:href="{{text .File}}" ovf:size="{{.FileSize}}"/>
{{- end}}
  </References>
  <DiskSection>
    <Info>Disks</Info>
{{- range $i, $d := .Disks}}
    <Disk ovf:diskId="{{text .ID}}" ovf:fileRef="file{{add $i 1}}" ovf:capacity="{{.Capacity}}"
      ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
{{- end}}
  </DiskSection>
{{- if .NICs}}
  <NetworkSection>
    <Info>Networks</Info>
{{- range .NICs}}
    <Network ovf:name="{{text .Network}}"/>
{{- end}}
  </NetworkSection>
{{- end}}
  <VirtualSystem ovf:id="{{text .Name}}">
    <Info>A virtual machine</Info>
    <Name>{{text .Name}}</Name>
    <OperatingSystemSection ovf:id="1">
      <Info>The operating system</Info>
      <Description>{{text .OS}}</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{{text .Name}}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType>
      </System>
{{- if .CPUs}}
      <Item>
        <rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits>
        <rasd:ElementName>CPUs</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>{{.CPUs}}</rasd:VirtualQuantity>
      </Item>
{{- end}}
{{- if .Memory}}
      <Item>
        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:ElementName>Memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>{{mib .Memory}}</rasd:VirtualQuantity>
      </Item>
{{- end}}
      <Item>
        <rasd:Address>0</rasd:Address>
        <rasd:ElementName>SATA controller</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>AHCI</rasd:ResourceSubType>
        <rasd:ResourceType>20</rasd:ResourceType>
      </Item>
{{- range $i, $d := .Disks}}
      <Item>
        <rasd:AddressOnParent>{{$i}}</rasd:AddressOnParent>
        <rasd:ElementName>Disk {{add $i 1}}</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/{{text .ID}}</rasd:HostResource>
        <rasd:InstanceID>{{add $i 10}}</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType>
      </Item>
{{- end}}
{{- range $i, $n := .NICs}}
      <Item>
        {{- if .MAC}}
        <rasd:Address>{{text .MAC}}</rasd:Address>
        {{- end}}
        <rasd:AddressOnParent>{{$i}}</rasd:AddressOnParent>
        <rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>
        <rasd:Connection>{{text .Network}}</rasd:Connection>
        <rasd:ElementName>Network card {{add $i 1}}</rasd:ElementName>
        <rasd:InstanceID>{{add $i 40}}</rasd:InstanceID>
        <rasd:ResourceSubType>{{if .Model}}{{text .Model}}{{else}}E1000{{end}}</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType>
      </Item>
{{- end}}
{{- if eq .Firmware "efi"}}
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
{{- end}}
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
`))
