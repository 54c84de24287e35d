package api

import (
	"context"
	"errors"
	"fmt"

	"github.com/godbus/dbus/v5"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
	"github.com/lodgehv/lodge/hypervisor/manager/job"
)

func snapshotInterface() *iface {
	return &iface{
		name: client.SnapshotInterface,
		doc:  "A snapshot of a guest, at the guest's path and /snapshots/NAME.",
		methods: []method{
			{name: "Restore", action: Define, in: []arg{{"memory", "b", 0}}, out: jobResult(), call: restoreSnapshot,
				doc: "Puts it back: the disks of the guest, which is off, become what they were, and with memory the next start goes on " +
					"from there. What they held is lost when the job ends, and not before."},
			{name: "Delete", action: Define, doc: "Removes it.", call: deleteSnapshot},
			{name: "GetPicture", action: View, out: []arg{{"png", "ay", 0}}, doc: "The guest's screen as it was, as PNG.",
				call: snapshotPicture},
		},
		properties: []property{
			{"Name", "s", true, "Its name."},
			{"Created", "t", true, "When it was made, in microseconds since 1970."},
			{"Memory", "b", true, "It has the memory of a guest that ran."},
			{"Disks", "as", true, "The names of its disks, as in the definition."},
			{"Size", "t", true, "Bytes that its files take up, where nothing is shared with others."},
			{"Picture", "b", true, "It has a picture of the guest's screen."},
		},
		values: func(r *request) (props, error) {
			list, err := r.Manager.Snapshots(r.object.Guest)
			if err != nil {
				return nil, err
			}
			for n := range list {
				if list[n].Name == r.object.Snapshot {
					return snapshotProps(&list[n]), nil
				}
			}
			return nil, fmt.Errorf("guest %s: %w: %.80q", r.object.Guest, manager.ErrNoSnapshot, r.object.Snapshot)
		},
	}
}

func snapshotProps(s *manager.Snapshot) props {
	v := dbus.MakeVariant
	disks := s.Disks
	if disks == nil {
		disks = []string{}
	}
	return props{"Name": v(s.Name), "Created": v(micros(s.Created)), "Memory": v(s.Memory), "Disks": v(disks),
		"Size": v(uint64(max(s.Size, 0))), "Picture": v(s.Picture)}
}

func restoreSnapshot(_ context.Context, r *request) ([]any, error) {
	return jobPath(r.Manager.Restore(r.object.Guest, r.object.Snapshot, r.bool(0)))
}

func deleteSnapshot(_ context.Context, r *request) ([]any, error) {
	return nil, r.Manager.DeleteSnapshot(r.object.Guest, r.object.Snapshot)
}

func snapshotPicture(_ context.Context, r *request) ([]any, error) {
	b, err := r.Manager.SnapshotPicture(r.object.Guest, r.object.Snapshot)
	return []any{b}, err
}

func jobInterface() *iface {
	return &iface{
		name: client.JobInterface,
		doc:  "Long work, at " + string(client.JobsPath) + "/ID. A job that has ended stays for a while.",
		methods: []method{
			{name: "Cancel", action: Control, call: cancelJob,
				doc: "Asks it to stop; whoever may begin such a job may do that. It does nothing to one that has ended."},
		},
		signals: []signal{
			{name: "Ended", args: []arg{{"state", "s", 0}, {"error", "s", 0}, {"message", "s", 0}},
				doc: "It has ended: done, failed or cancelled. What failed has the name of an error and a message for people."},
		},
		properties: []property{
			{"ID", "t", true, "Its number, which no other has."},
			{"Kind", "s", true, "What is done, such as start."},
			{"Object", "s", true, "To what: the name of a guest, mostly."},
			{"State", "s", false, "running, done, failed or cancelled."},
			{"Done", "t", false, "How much is done, in bytes mostly."},
			{"Total", "t", false, "Of how much; 0 while that is not known."},
			{"Error", "s", false, "Why it failed, as the name of an error."},
			{"Message", "s", false, "The same for people."},
			{"Began", "t", true, "When it began, in microseconds since 1970."},
			{"Finished", "t", false, "When it ended, or 0."},
		},
		values: func(r *request) (props, error) {
			s, err := r.Manager.Jobs().Get(r.object.Job)
			if err != nil {
				return nil, fmt.Errorf("job %d: %w", r.object.Job, err)
			}
			return jobProps(&s), nil
		},
	}
}

func jobProps(s *job.Status) props {
	v := dbus.MakeVariant
	name, message := jobError(s)
	return props{"ID": v(s.ID), "Kind": v(s.Kind), "Object": v(text(s.Object, maxErrorText)), "State": v(string(s.State)),
		"Done": v(uint64(max(s.Done, 0))), "Total": v(uint64(max(s.Total, 0))), "Error": v(name), "Message": v(message),
		"Began": v(micros(s.Began)), "Finished": v(micros(s.Ended))}
}

// jobError returns the name of the error that a job failed by, and a message.
func jobError(s *job.Status) (name, message string) {
	if s.Err == nil || errors.Is(s.Err, context.Canceled) && s.State == job.Cancelled {
		return "", ""
	}
	e := busError(s.Err)
	return e.Name, e.Error()
}

// cancelJob cancels a job for those who could have begun it.
func cancelJob(ctx context.Context, r *request) ([]any, error) {
	s, err := r.Manager.Jobs().Get(r.object.Job)
	if err != nil {
		return nil, fmt.Errorf("job %d: %w", r.object.Job, err)
	}
	switch s.Kind {
	case "start", "stop", "reboot", "kill", "save":
	case stopAllKind:
		err = r.allow(ctx, r, Host)
	default:
		err = r.allow(ctx, r, Define)
	}
	if err != nil {
		return nil, err
	}
	return nil, r.Manager.Jobs().Cancel(r.object.Job)
}
