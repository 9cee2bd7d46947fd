#include "engine/row_group.h"

namespace pith {

Error RowGroup::FullError() const { return BudgetFull(*sequence, limit_bytes); }

}  // namespace pith
