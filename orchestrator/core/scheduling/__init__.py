"""One plan: what is offered, what a request leaves out, which machines a job gets, and why it waits."""
