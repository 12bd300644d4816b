//! A pool of huge pages, and where it is mounted.

use super::FakeRoot;

impl FakeRoot {
    /// An empty pool of 2 MiB pages, whose file system is mounted at `place`. Its `struct page`s stay,
    /// and 600 MiB are free for the kernel.
    pub fn add_huge_pages(&self, place: &str) {
        for name in
            ["free_hugepages", "resv_hugepages", "surplus_hugepages", "nr_overcommit_hugepages"]
        {
            self.put(&format!("sys/kernel/mm/hugepages/hugepages-2048kB/{name}"), "0\n");
        }
        self.put("proc/sys/vm/hugetlb_optimize_vmemmap", "0\n");
        let line = format!("31 2 0:27 / {place} rw,nosuid - hugetlbfs hugetlbfs rw,pagesize=2M\n");
        self.put("proc/self/mountinfo", &line);
        self.put("proc/zoneinfo", "Node 0, zone    DMA32\n  pages free     153600\n");
        std::fs::create_dir_all(self.root().path(place)).expect("a directory of the test's own");
    }
}
