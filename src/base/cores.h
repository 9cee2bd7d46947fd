// The cores of this machine.
#ifndef PITH_BASE_CORES_H_
#define PITH_BASE_CORES_H_

namespace pith {

// Cores that this process may use, hyper-threads counted once. At least 1.
int PhysicalCores();

}  // namespace pith

#endif  // PITH_BASE_CORES_H_
