//! The worker under faults: its servers break, hang and come back, and its data are hostile.
