#include "cli/app.h"

int main(int argc, char** argv) { return pith::cli::Main(argc, argv); }
